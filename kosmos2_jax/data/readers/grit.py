"""GRIT: captions whose phrases have boxes (spec sections 4.3 and 6).

An annotation is `[start, end, x1, y1, x2, y2, score]`: offsets in characters of the caption,
half-open; a box in fractions of the picture; the confidence of the detector. Those that are
malformed by `kosmos2_jax.data.grit.read_annotation` are dropped and counted; a caption without any
other is skipped. Offsets that img2dataset turned into floats (trap T-49) become integers again.
Which annotations are good enough, and where a box is cut, the task decides.
"""

from __future__ import annotations

import ast
import base64
import binascii
import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.grit import read_annotation
from kosmos2_jax.data.readers import captions, files
from kosmos2_jax.data.readers.base import Note, Reading, clean_line, option, string
from kosmos2_jax.data.skips import CLIPPED, FILTERED, Unusable

Annotation = list[float]  # [start, end, x1, y1, x2, y2, score]

# Characters of the sixth column. Real ones have some hundreds to some thousands.
MAX_LITERAL = 1 << 18

# How much the shape of a picture may differ from what it was when its boxes were made: two pixels
# of a short side of 64.
_MAX_RESHAPED = 2 / 64


def parse_annotations(values: Any, caption: str, note: Note) -> list[Annotation]:
    """Returns the well-formed annotations among `values`.

    Args:
      values: what should be a list of annotations.
      caption: that they are about.
      note: told what was dropped or mended.
    """
    if not isinstance(values, list):
        note(f"{CLIPPED}annotations are not a list")
        return []
    annotations = []
    for value in values:
        annotation = read_annotation(value, caption)
        if isinstance(annotation, str):
            note(f"{CLIPPED}dropped: {annotation}")
            continue
        if any(isinstance(offset, float) for offset in value[:2]):
            note(f"{CLIPPED}offset written as a float")
        start, end, box, score = annotation
        annotations.append([start, end, *box, score])
    return annotations


def parse_grounding(
    text: str, noun_chunks: Any, ref_exps: Any, keep_without_boxes: bool, note: Note
) -> dict[str, Any]:
    """Returns the content of a grounded document.

    Args:
      text: the caption.
      noun_chunks: its annotations by noun chunk; None where there are none.
      ref_exps: its annotations by referring expression, likewise.
      keep_without_boxes: whether a caption is kept that has no usable annotation.
      note: told what was clipped.

    Raises:
      Unusable: the caption is empty, or nothing of it is grounded.
    """
    caption = clean_line(text, "caption", note)
    content = {
        "caption": caption,
        "noun_chunks": parse_annotations([] if noun_chunks is None else noun_chunks, caption, note),
        "ref_exps": parse_annotations([] if ref_exps is None else ref_exps, caption, note),
    }
    if not keep_without_boxes and not content["noun_chunks"] and not content["ref_exps"]:
        raise Unusable("no usable annotation")
    return content


@dataclasses.dataclass(frozen=True)
class GritOptions(captions.Img2datasetOptions):
    """Settings of `read_grit`; what they default to is the official loader's (spec 4.3)."""

    keep_without_boxes: bool = option(
        False, "keep captions without boxes, which the official loader skips"
    )


def read_grit(
    path: str, reading: Reading, options: GritOptions = GritOptions()
) -> Iterator[Document]:
    """Yields the grounded captions of a shard that img2dataset made of GRIT (spec section 6).

    Args:
      path: a tar file, a parquet file or a folder, see `captions.img2dataset_pairs`. It must have
        been made with `--save_additional_columns '["noun_chunks","ref_exps"]'` and a resize mode
        that keeps the shape: a picture that was padded or cropped is skipped, for its boxes no
        longer fit.
      reading: how to read.
      options: where things are.

    Raises:
      DataError: a parquet file lacks a column.
    """

    def parse(key: str, pair: Any) -> Iterator[Document]:
        raw = pair()
        metadata = raw.metadata
        content = parse_grounding(
            string(metadata, options.caption_field),
            metadata.get("noun_chunks"),
            metadata.get("ref_exps"),
            options.keep_without_boxes,
            reading.note,
        )
        image, width, height = captions.checked_picture(raw.encoded, reading.pictures)
        _check_shape(metadata, width, height)
        yield Document("grounded", (image,), content, (width, height), reading.source, key)

    columns = ("noun_chunks", "ref_exps")
    return reading.documents(captions.img2dataset_pairs(path, options, columns), parse)


def _check_shape(metadata: dict[str, Any], width: int, height: int) -> None:
    """Skips a picture that has another shape than its original."""
    original = metadata.get("original_width"), metadata.get("original_height")
    if not all(isinstance(side, int | float) and 0 < side < math.inf for side in original):
        return
    ratio = (width / height) / (original[0] / original[1])
    slack = _MAX_RESHAPED + 1 / min(width, height)
    if not 1 - slack <= ratio <= 1 + slack:
        raise Unusable("picture padded or cropped after its boxes were made")


@dataclasses.dataclass(frozen=True)
class GritTsvOptions:
    """Settings of `read_grit_tsv`; what they default to is the official loader's (spec 4.3)."""

    min_side: int = option(
        0,
        "drop pictures whose noted width or height is less or no number; the official loader has "
        "200 for files of LAION, none for those of COYO",
    )
    keep_without_boxes: bool = option(
        False, "keep captions without boxes, which the official loader skips"
    )


@dataclasses.dataclass(frozen=True)
class GritRow:
    """A row of the official table.

    Attributes:
      content: of a grounded document.
      encoded: the picture.
    """

    content: dict[str, Any]
    encoded: bytes


def parse_grit_row(raw: bytes, options: GritTsvOptions, note: Note) -> GritRow:
    """Reads a line of the official table: md5, caption, base64 of the JPEG, width, height, dict.

    The table is not escaped (trap T-49). A tab within the caption is recovered, since no other
    column can hold one; a line break leaves two lines that are skipped. The dict is the `repr` of
    `{'phrase': noun_chunks, 'expression_v1': ref_exps}`, read as a literal, never run.

    Raises:
      Unusable: the line has not its six columns, or one of them is malformed, or nothing in the
        caption is grounded.
    """
    try:
        columns = raw.decode().split("\t")
    except UnicodeDecodeError:
        raise Unusable("not UTF-8") from None
    if len(columns) == 5 and options.keep_without_boxes:
        columns.append("{}")
    if len(columns) < 6:
        raise Unusable("not six columns")
    picture, width, height, annotations = columns[-4:]
    _check_sides(width, height, options.min_side)
    boxes = _parse_literal(annotations)
    content = parse_grounding(
        "\t".join(columns[1:-4]),
        boxes.get("phrase"),
        boxes.get("expression_v1"),
        options.keep_without_boxes,
        note,
    )
    try:
        encoded = base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError):
        raise Unusable("picture not base64") from None
    return GritRow(content, encoded)


def _check_sides(width: str, height: str, min_side: int) -> None:
    if not min_side:
        return
    try:
        sides = float(width), float(height)
    except ValueError:
        raise Unusable(f"{FILTERED}width or height no number") from None
    if not min(sides) >= min_side or any(map(math.isnan, sides)):
        raise Unusable(f"{FILTERED}picture below the least side")


def _parse_literal(text: str) -> dict[str, Any]:
    if len(text) > MAX_LITERAL:
        raise Unusable("annotations too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable("annotations malformed") from None
    if not isinstance(value, dict):
        raise Unusable("annotations malformed")
    return value


def read_grit_tsv(
    path: str, reading: Reading, options: GritTsvOptions = GritTsvOptions()
) -> Iterator[Document]:
    """Yields the grounded captions of a file of the official six-column table (spec section 4.3).

    The size of a document is that of the picture itself, since the two columns are free text.
    """

    def parse(key: str, raw: bytes) -> Iterator[Document]:
        row = parse_grit_row(raw, options, reading.note)
        image, width, height = captions.checked_picture(row.encoded, reading.pictures)
        yield Document("grounded", (image,), row.content, (width, height), reading.source, key)

    return reading.documents(files.lines(path), parse)
