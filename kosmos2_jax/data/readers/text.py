"""Text: JSON lines, plain text files, and text sets of tensorflow-datasets.

A document keeps its line breaks; the task makes `</line>` tokens of them (spec section 4.2).
Empty documents are skipped; what else becomes of odd characters, `base.clean_text` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import files
from kosmos2_jax.data.readers.base import Note, Reading, clean_text, option, parse_json, string
from kosmos2_jax.data.skips import CLIPPED, DataError, Unusable

# A plain text file without separators would otherwise be held in memory whole.
_MAX_PLAIN_DOCUMENT = 1 << 20


@dataclasses.dataclass(frozen=True)
class JsonlOptions:
    """Settings of `read_jsonl`; the field is that of the released loader (spec section 4.2)."""

    text_field: str = option("text", "field that holds the text")


def parse_text(raw: bytes, field: str, note: Note) -> str:
    """Returns the text of a JSON line such as `{"text": "..."}`, cleaned.

    Raises:
      Unusable: the line is not a JSON object in UTF-8, or the field is no string or is empty.
    """
    return clean_text(string(parse_json(raw), field), "document", note)


def read_jsonl(
    path: str, reading: Reading, options: JsonlOptions = JsonlOptions()
) -> Iterator[Document]:
    """Yields the documents of a file of JSON lines; .gz, .zst and .zip are decompressed."""

    def parse(key: str, raw: bytes) -> Iterator[Document]:
        text = parse_text(raw, options.text_field, reading.note)
        yield reading.document("text", key, {"text": text})

    return reading.documents(files.lines(path), parse)


@dataclasses.dataclass(frozen=True)
class PlainOptions:
    """Settings of `read_plain`."""

    separator: str | None = option(
        None,
        "line that parts documents, '' for blank lines; by default a file is one document",
    )


def read_plain(
    path: str, reading: Reading, options: PlainOptions = PlainOptions()
) -> Iterator[Document]:
    """Yields the documents of a plain text file in UTF-8; .gz and .zst are decompressed.

    Bytes that are not UTF-8 become U+FFFD. A document of more than a million characters goes on
    as another one at the next line.
    """

    def parse(key: str, text: str) -> Iterator[Document]:
        yield reading.document("text", key, {"text": clean_text(text, "document", reading.note)})

    return reading.documents(_plain_documents(path, options.separator, reading), parse)


def _plain_documents(
    path: str, separator: str | None, reading: Reading
) -> Iterator[tuple[str, str | Unusable]]:
    # Every share reads the whole file, but only one of them may count what it finds in it.
    note: Note = reading.note if reading.share.index == 0 else lambda reason: None
    first, gathered, length = "0", [], 0
    for number, line in files.lines(path, blank=True):
        if isinstance(line, Unusable):
            yield number, line
            continue
        text = line.decode(errors="replace")
        if "\N{REPLACEMENT CHARACTER}" in text:
            note(f"{CLIPPED}not UTF-8")
        ends = separator is not None and text.strip() == separator
        if not ends:
            gathered.append(text)
            length += len(text) + 1
        if length > _MAX_PLAIN_DOCUMENT:
            note(f"{CLIPPED}long document split")
            ends = True
        if ends:
            if any(map(str.strip, gathered)):
                yield first, "\n".join(gathered)
            first, gathered, length = str(int(number) + 1), [], 0
    if any(map(str.strip, gathered)) or separator is None:
        yield first, "\n".join(gathered)


@dataclasses.dataclass(frozen=True)
class TfdsOptions:
    """Settings of `read_tfds`."""

    feature: str = option("text", "feature that holds the text")
    tfds_split: str = option("train", "which split to read")
    data_dir: str | None = option(None, "where tensorflow-datasets keeps its files")


def read_tfds(
    path: str, reading: Reading, options: TfdsOptions = TfdsOptions()
) -> Iterator[Document]:
    """Yields the documents of a text set of tensorflow-datasets.

    Args:
      path: its name, as `wikipedia/20230601.en`; it must be prepared, see `prepare_tfds`.
      reading: how to read.
      options: where the text is.

    Raises:
      DataError: there is no such split, or the feature is no string.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder(path, data_dir=options.data_dir)
    features = dict(builder.info.features)
    if features.get(options.feature) is None or features[options.feature].tf_dtype != tf.string:
        raise DataError(
            f"{path!r} has no text feature {options.feature!r}, only "
            f"{', '.join(sorted(features))}: name one of them with --feature."
        )
    if options.tfds_split not in builder.info.splits:
        raise DataError(
            f"{path!r} has no split {options.tfds_split!r}, only {', '.join(builder.info.splits)}."
        )
    share = tfds.even_splits(options.tfds_split, reading.share.of)[reading.share.index]
    decoders = tfds.decode.PartialDecoding({options.feature: True})
    records = tfds.as_numpy(builder.as_dataset(split=share, decoders=decoders))
    numbered = ((f"{share}:{i}", record) for i, record in enumerate(records))

    def parse(key: str, record: dict[str, Any]) -> Iterator[Document]:
        text = clean_text(string(record, options.feature), "document", reading.note)
        yield reading.document("text", key, {"text": text})

    # tensorflow-datasets has taken the share already.
    whole = dataclasses.replace(reading, share=type(reading.share)())
    return whole.documents(numbered, parse)


def prepare_tfds(names: Sequence[str], options: TfdsOptions = TfdsOptions()) -> list[str]:
    """Downloads and prepares sets of tensorflow-datasets where that is not done yet.

    Raises:
      DataError: there is no set of such a name.
    """
    import tensorflow_datasets as tfds

    for name in names:
        try:
            builder = tfds.builder(name, data_dir=options.data_dir)
        except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"tensorflow-datasets has no set {name!r}: {reason.rstrip('.')}."
            ) from None
        builder.download_and_prepare()
    return list(names)
