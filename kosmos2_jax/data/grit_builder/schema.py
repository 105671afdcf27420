"""GRIT as it is published: a parquet row for each picture (spec section 6), and its statistics.

Columns are key, clip_similarity_vitb32, clip_similarity_vitl14, id, url, caption, width, height,
noun_chunks and ref_exps; what a source does not know is null. Pictures are not in it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import files
from kosmos2_jax.data.skips import DataError, Unusable

# Of the pair, which the JSON of img2dataset has; the reader keeps them in the caption's document.
METADATA = ("clip_similarity_vitb32", "clip_similarity_vitl14", "id", "url")


def row(document: Document) -> dict[str, Any]:
    """Returns the row of a grounded document."""
    width, height = document.size or (None, None)
    known = document.content.get("metadata", {})
    return {
        "key": document.key,
        "clip_similarity_vitb32": _number(known.get("clip_similarity_vitb32")),
        "clip_similarity_vitl14": _number(known.get("clip_similarity_vitl14")),
        "id": None if known.get("id") is None else str(known["id"]),
        "url": known.get("url") if isinstance(known.get("url"), str) else None,
        "caption": document.content["caption"],
        "width": width,
        "height": height,
        "noun_chunks": [[float(v) for v in a] for a in document.content["noun_chunks"]],
        "ref_exps": [[float(v) for v in a] for a in document.content["ref_exps"]],
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def write_parquet(path: epath.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows; the file is there whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    boxes = pa.list_(pa.list_(pa.float64()))
    types = {
        "key": pa.string(), "clip_similarity_vitb32": pa.float64(),
        "clip_similarity_vitl14": pa.float64(), "id": pa.string(), "url": pa.string(),
        "caption": pa.string(), "width": pa.int64(), "height": pa.int64(),
        "noun_chunks": boxes, "ref_exps": boxes,
    }  # fmt: skip
    temporary = path.with_name(f"{path.name}.writing-{uuid.uuid4().hex}")
    with temporary.open("wb") as stream:
        parquet.write_table(pa.Table.from_pylist(list(rows), pa.schema(types.items())), stream)
    temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class GritStatistics:
    """What the paper's table says of a set (spec section 6).

    Attributes:
      images: pictures that have a box.
      boxes: of referring expressions.
      spans: referring expressions, however many boxes each has.
      words: of a span, on average; parted by blanks.
    """

    images: int
    boxes: int
    spans: int
    words: float

    def table(self) -> str:
        """The paper's table, with its row of GRIT."""
        head = f"{'':<12}{'images':>14}{'boxes':>14}{'text spans':>14}{'mean words':>12}"
        ours = _line("this set", self)
        return "\n".join((head, ours, _line("GRIT, paper", PAPER)))


PAPER = GritStatistics(90_614_680, 137_349_210, 114_978_233, 4.7)


def _line(name: str, of: GritStatistics) -> str:
    return f"{name:<12}{of.images:>14,}{of.boxes:>14,}{of.spans:>14,}{of.words:>12.1f}"


def statistics(paths: Iterable[str]) -> GritStatistics:
    """Counts published or built files.

    Args:
      paths: parquet files.

    Raises:
      DataError: a file is no parquet file of GRIT.
    """
    images = boxes = spans = words = 0
    for path in paths:
        for number, record in files.parquet_rows(path, ("caption", "ref_exps")):
            if isinstance(record, Unusable):
                raise DataError(f"{path!r} cannot be read from row {number} on: {record}.")
            found = record["ref_exps"] or []
            places = {(int(a[0]), int(a[1])) for a in found}
            images += bool(found)
            boxes += len(found)
            spans += len(places)
            words += sum(len(record["caption"][start:end].split()) for start, end in places)
    return GritStatistics(images, boxes, spans, words / spans if spans else 0.0)
