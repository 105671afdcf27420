"""What readers of labelled boxes share: from a picture and its boxes to a grounded document.

Such a document is what GRIT has: a caption whose phrases have boxes. A given caption is searched
for the labels; where there is none, or it names no label, one is composed of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from kosmos2_jax.data.chance import chance
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.label_captions import OPENING, LabelledBox, compose_caption, find_labels
from kosmos2_jax.data.readers import files
from kosmos2_jax.data.readers.base import Note, Reading, clean_line, option
from kosmos2_jax.data.readers.captions import checked_picture
from kosmos2_jax.data.readers.grit import Annotation, parse_annotations
from kosmos2_jax.data.readers.pictures import PictureStore
from kosmos2_jax.data.skips import CLIPPED, FILTERED, DataError, Unusable

PIXELS, FRACTIONS = "pixels", "fractions"

# A fraction above this is a pixel: rounding and boxes that reach out of the picture stay below.
_LARGEST_FRACTION = 2.0

# How much the shape of a picture may differ from that of the noted size.
_MAX_RESHAPED = 0.02


@dataclasses.dataclass(frozen=True)
class BoxOptions:
    """Settings of all readers of labelled boxes."""

    part: str = option(
        "0:1",
        "share of the pictures to take, by their names, for splits of one file: 0:0.9 for "
        "training and 0.9:1 for validation have no picture in common",
    )
    opening: str = option(OPENING, "words that captions begin with which are composed of labels")

    def __post_init__(self) -> None:
        _bounds(self.part)


@dataclasses.dataclass(frozen=True)
class LabelledPicture:
    """A picture and its boxes as a source has them.

    Attributes:
      name: of the picture, as the source has it.
      boxes: in the order of the source.
      units: of the boxes, "pixels" or "fractions".
      size: width and height that the source notes, in pixels, if it does.
      captions: that the source has, none or more.
    """

    name: str
    boxes: Sequence[LabelledBox]
    units: str
    size: tuple[float, float] | None = None
    captions: Sequence[str] = ()


def folder_paths(inputs: Sequence[str]) -> list[str]:
    """Returns the folders that the user named.

    Raises:
      DataError: an input is not there, or no folder.
    """
    found = [path for given in inputs for path in files.expand_glob(given, "INPUT")]
    for path in found:
        if not epath.Path(path).is_dir():
            raise DataError(f"INPUT: {path!r} is a file: name the folder that it lies in.")
    return found


def read_file(path: epath.Path, reason: str) -> bytes:
    """Returns the bytes of a file; raises `Unusable` for `reason` if it is not there."""
    if not path.exists():
        raise Unusable(reason)
    return files.Member(path.name, str(path), 0, path.stat().length).read()


def own_folder(path: str) -> str:
    """The folder that a file lies in."""
    return posixpath.dirname(path) or "."


def numbers(values: Any, count: int) -> tuple[float, ...]:
    """Returns so many finite numbers, which may be written as text.

    Raises:
      Unusable: they are something else.
    """
    if isinstance(values, list | tuple) and len(values) == count:
        try:
            found = tuple(float(v) for v in values if not isinstance(v, bool))
        except (TypeError, ValueError, OverflowError):
            found = ()
        if len(found) == count and all(map(math.isfinite, found)):
            return found
    raise Unusable("box is not four numbers")


def noted_size(width: Any, height: Any) -> tuple[float, float] | None:
    """Returns the size that a source notes, or None if it notes none."""
    try:
        size = numbers([width, height], 2)
    except Unusable:
        return None
    return (size[0], size[1]) if min(size) >= 1 else None


def read_boxes(items: Iterable[Any], read_box: Any, note: Note) -> list[LabelledBox]:
    """Returns the boxes among `items`; what is none is dropped and counted.

    Args:
      items: what a source has for each box.
      read_box: makes a `LabelledBox` of an item, or raises `Unusable`.
      note: told what was dropped.
    """
    boxes = []
    for item in items:
        try:
            box = read_box(item)
        except Unusable as problem:
            note(_dropped(problem))
            continue
        if box in boxes:
            note(f"{CLIPPED}dropped: box given twice")
        else:
            boxes.append(box)
    return boxes


def _dropped(problem: Unusable) -> str:
    """A reason to leave a box out, as one for its document, which stays."""
    return problem.reason if problem.reason.startswith(FILTERED) else f"{CLIPPED}dropped: {problem}"


def named_once(records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields names and records of pictures, `Unusable` in the place of one whose name was there."""
    seen = set()
    for number, (name, record) in enumerate(records):
        if name in seen:
            yield f"{name}#{number}", Unusable("picture named twice")
        else:
            seen.add(name)
            yield name, record


def in_part(name: str, part: str) -> bool:
    """Says whether a picture is in a part `FROM:TO` of all."""
    low, high = _bounds(part)
    return low <= chance("part", name) < high


@functools.lru_cache(maxsize=8)
def _bounds(part: str) -> tuple[float, float]:
    match = re.fullmatch(r"([\d.]+):([\d.]+)", part)
    try:
        bounds = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    except ValueError:
        bounds = (0.0, 0.0)
    if not 0.0 <= bounds[0] < bounds[1] <= 1.0:
        raise DataError(f"--part {part!r} is not FROM:TO within 0..1: give 0:0.9, say.")
    return bounds


def grounded_document(
    key: str,
    picture: LabelledPicture,
    load: Callable[[], bytes],
    reading: Reading,
    options: BoxOptions,
) -> Document:
    """Makes a document of kind "grounded" of a picture and its boxes.

    Args:
      key: of the document.
      picture: with its boxes.
      load: gives the encoded picture, or raises `Unusable`.
      reading: how pictures are stored, and where to count.
      options: which pictures to take.

    Raises:
      Unusable: the picture is bad, missing, or of another shape than noted; no box is usable; or
        they are in other units than was said.
    """
    if not in_part(picture.name, options.part):
        raise Unusable(f"{FILTERED}in another part")
    if not picture.boxes:
        raise Unusable(f"{FILTERED}picture without boxes")
    _check_units(picture)
    image, width, height = checked_picture(load(), reading.pictures)
    size = _size_of_boxes(picture, width, height)
    boxes = read_boxes(picture.boxes, functools.partial(_scaled, size=size), reading.note)
    if not boxes:
        raise Unusable("no usable label")
    text, annotations = _captioned(picture.captions, boxes, options.opening, reading.note)
    caption = clean_line(text, "caption", reading.note)
    annotations = parse_annotations(annotations, caption, reading.note)
    if not annotations:
        raise Unusable("no usable box")
    # A label is phrase and expression in one.
    content = {"caption": caption, "noun_chunks": annotations, "ref_exps": annotations}
    return Document("grounded", (image,), content, (width, height), reading.source, key)


def find_picture(store: PictureStore, name: str) -> bytes:
    """Returns the picture of a path as annotation tools write it, or else of its bare name.

    Raises:
      Unusable: it is missing.
    """
    name = name.replace("\\", "/")
    try:
        return store.get(name)
    except Unusable:
        return store.get(posixpath.basename(name))


def _check_units(picture: LabelledPicture) -> None:
    largest = max(max(map(abs, box.box)) for box in picture.boxes)
    if picture.units == FRACTIONS and largest > _LARGEST_FRACTION:
        raise Unusable("boxes in pixels where fractions were said")
    if picture.units == PIXELS and largest <= 1.0:
        raise Unusable("boxes in fractions where pixels were said")


def _size_of_boxes(picture: LabelledPicture, width: int, height: int) -> tuple[float, float]:
    """What coordinates are to be divided by."""
    if picture.units == FRACTIONS:
        return 1.0, 1.0
    if picture.size is None:
        return float(width), float(height)
    ratio = (picture.size[0] / picture.size[1]) / (width / height)
    slack = _MAX_RESHAPED + 1 / min(width, height)
    if not 1 - slack <= ratio <= 1 + slack:
        # Cut, padded, or turned by its EXIF orientation, which nothing here applies.
        raise Unusable("picture of another shape than its boxes were drawn on")
    return picture.size


def _scaled(box: LabelledBox, size: tuple[float, float]) -> LabelledBox:
    """A box in fractions, under a clean label."""
    x1, y1, x2, y2 = box.box
    label = clean_line(box.label.replace("_", " "), "label", lambda reason: None)
    corners = (x1 / size[0], y1 / size[1], x2 / size[0], y2 / size[1])
    return dataclasses.replace(box, label=" ".join(label.split()), box=corners)


def _captioned(
    captions: Sequence[str], boxes: Sequence[LabelledBox], opening: str, note: Note
) -> tuple[str, list[Annotation]]:
    """The caption that names most boxes and where, or a composed one."""
    tries = [(caption, *find_labels(caption, boxes)) for caption in captions if caption.strip()]
    if tries:
        caption, annotations, missing = min(tries, key=lambda found: len(found[2]))
        if annotations:
            for _ in missing:
                note(f"{CLIPPED}dropped: label is not in the caption")
            return caption, annotations
        note(f"{CLIPPED}caption names no label, so one is composed of them")
    return compose_caption(boxes, opening)
