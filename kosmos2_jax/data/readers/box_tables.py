"""Boxes in tables: CSV with a row a box, and our JSON lines with a line a picture."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping
from typing import Any

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.label_captions import LabelledBox
from kosmos2_jax.data.readers import boxes, files
from kosmos2_jax.data.readers.base import Note, Reading, option, parse_json, string
from kosmos2_jax.data.readers.boxes import BoxOptions, LabelledPicture
from kosmos2_jax.data.readers.pictures import IMAGES_HELP, picture_store
from kosmos2_jax.data.skips import FILTERED, DataError, Unusable

# What columns are called: by us first, then by TensorFlow's detection API, Open Images, R.
COLUMNS = {
    "image": ("image", "filename", "file_name", "image_path", "path", "imageid", "image_id"),
    "label": ("label", "class", "class_name", "name", "category", "labelname"),
    "x1": ("x1", "xmin", "x_min", "left"),
    "y1": ("y1", "ymin", "y_min", "top"),
    "x2": ("x2", "xmax", "x_max", "right"),
    "y2": ("y2", "ymax", "y_max", "bottom"),
}
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclasses.dataclass(frozen=True)
class BoxTableOptions(BoxOptions):
    """Settings of `read_box_csv` and `read_box_jsonl`."""

    images: str | None = option(None, f"{IMAGES_HELP}; by default that of the table")
    units: str = option(boxes.PIXELS, "what coordinates are: pixels or fractions")
    subset: str | None = option(None, "take only what has this value in column or field 'split'")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units not in (boxes.PIXELS, boxes.FRACTIONS):
            raise DataError(f"--units {self.units!r} is neither pixels nor fractions.")


def read_box_csv(
    path: str, reading: Reading, options: BoxTableOptions = BoxTableOptions()
) -> Iterator[Document]:
    """Yields a grounded document for each picture of a table with a row for each box.

    The first row names the columns: image, label, x1, y1, x2, y2, or names of `COLUMNS`; and, if
    there are any, width and height of the picture, caption, score and split. A row without a
    label says that there is a picture without boxes.

    Args:
      path: CSV file. It is read whole, as rows of a picture may stand apart.
      reading: how to read.
      options: where pictures are, and in which units boxes.

    Raises:
      DataError: a column is missing, or there are no pictures where `options.images` says.
    """
    store = picture_store(options.images or boxes.own_folder(path), path)

    def parse(key: str, rows: list[dict[str, str]]) -> Iterator[Document]:
        first = rows[0]
        picture = LabelledPicture(
            first["image"],
            boxes.read_boxes((r for r in rows if r["label"]), _read_row, reading.note),
            options.units,
            boxes.noted_size(first.get("width"), first.get("height")),
            list(dict.fromkeys(row["caption"] for row in rows if row.get("caption"))),
        )
        _check_subset(first, options)
        load = functools.partial(boxes.find_picture, store, picture.name)
        yield boxes.grounded_document(key, picture, load, reading, options)

    return reading.documents(_pictures_of_csv(path), parse)


def _pictures_of_csv(path: str) -> Iterator[tuple[str, Any]]:
    with files.open_file(path) as stream:
        try:
            table = list(csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path!r} is not CSV in UTF-8: {error}.") from None
    names = _column_names(table[0] if table else [], path)
    pictures: dict[str, list[dict[str, str]]] = {}
    for number, values in enumerate(table[1:], 2):
        if len(values) != len(names):
            yield f"line {number}", Unusable("row has not as many columns as the first")
            continue
        row = dict(zip(names, map(str.strip, values), strict=True))
        pictures.setdefault(row["image"], []).append(row)
    yield from pictures.items()


def _column_names(header: list[str], path: str) -> list[str]:
    names = [name.strip().lower() for name in header]
    for ours, known in COLUMNS.items():
        found = next((name for name in known if name in names), None)
        if found is None:
            raise DataError(
                f"{path!r} has no column {ours!r}, only {', '.join(header) or 'none'}: its first "
                f"row must name the columns, as {','.join(COLUMNS)}."
            )
        names[names.index(found)] = ours
    return names


def _read_row(row: Mapping[str, str]) -> LabelledBox:
    corners = boxes.numbers([row[corner] for corner in _CORNERS], 4)
    (score,) = boxes.numbers([row.get("score") or 1.0], 1)
    return LabelledBox(row["label"], corners, score)


def _check_subset(record: Mapping[str, Any], options: BoxTableOptions) -> None:
    if options.subset is not None and record.get("split") != options.subset:
        raise Unusable(f"{FILTERED}in another split")


def read_box_jsonl(
    path: str, reading: Reading, options: BoxTableOptions = BoxTableOptions()
) -> Iterator[Document]:
    """Yields a grounded document for each line of our own JSON lines.

    A line is `{"image": "1.jpg", "boxes": [{"label": "dog", "box": [x1, y1, x2, y2]}]}`; it may
    have "width" and "height" that the boxes are of, "caption" and "split", and a box "score" and
    "span", the characters `[start, end]` of the caption that it is about, which needs no label.

    Args:
      path: file of JSON lines.
      reading: how to read.
      options: where pictures are, and in which units boxes.

    Raises:
      DataError: there are no pictures where `options.images` says.
    """
    store = picture_store(options.images or boxes.own_folder(path), path)

    def parse(key: str, record: dict[str, Any]) -> Iterator[Document]:
        picture = parse_json_boxes(record, options.units, reading.note)
        _check_subset(record, options)
        load = functools.partial(boxes.find_picture, store, picture.name)
        yield boxes.grounded_document(key, picture, load, reading, options)

    return reading.documents(boxes.named_once(_json_records(path)), parse)


def parse_json_boxes(record: dict[str, Any], units: str, note: Note) -> LabelledPicture:
    """Reads a line of `read_box_jsonl`.

    Raises:
      Unusable: it is not of the kind.
    """
    if not isinstance(record.get("boxes"), list):
        raise Unusable("no list 'boxes'")
    caption = string(record, "caption") if record.get("caption") is not None else ""
    read_box = functools.partial(_read_json_box, caption=caption)
    return LabelledPicture(
        string(record, "image"),
        boxes.read_boxes(record["boxes"], read_box, note),
        units,
        boxes.noted_size(record.get("width"), record.get("height")),
        [caption],
    )


def _json_records(path: str) -> Iterator[tuple[str, Any]]:
    for number, line in files.lines(path):
        try:
            if isinstance(line, Unusable):
                raise line
            record = parse_json(line)
            yield string(record, "image"), record
        except Unusable as problem:
            yield f"line {number}", problem


def _read_json_box(item: Any, caption: str) -> LabelledBox:
    if not isinstance(item, dict):
        raise Unusable("box is not a JSON object")
    span = item.get("span")
    if span is not None:
        start, end = map(int, boxes.numbers(span, 2))
        if not 0 <= start < end <= len(caption):
            raise Unusable("span is outside the caption")
        span = (start, end)
    label = caption[slice(*span)] if span and "label" not in item else string(item, "label")
    (score,) = boxes.numbers([item.get("score", 1.0)], 1)
    return LabelledBox(label, boxes.numbers(item.get("box"), 4), score, span)
