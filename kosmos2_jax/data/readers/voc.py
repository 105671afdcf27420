"""Pascal VOC and LabelMe: a file of boxes for each picture."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from etils import epath

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.label_captions import LabelledBox
from kosmos2_jax.data.readers import boxes, files
from kosmos2_jax.data.readers.base import Note, Reading, option, parse_json, string
from kosmos2_jax.data.readers.boxes import BoxOptions, LabelledPicture
from kosmos2_jax.data.readers.pictures import IMAGES_HELP, picture_store
from kosmos2_jax.data.skips import DataError, Unusable


@dataclasses.dataclass(frozen=True)
class VocOptions(BoxOptions):
    """Settings of `read_voc`."""

    images: str | None = option(
        None, f"{IMAGES_HELP}; by default JPEGImages in INPUT, or where the XML files are"
    )
    image_set: str | None = option(
        None, "take the pictures of ImageSets/Main/NAME.txt only: train, val, trainval"
    )


def read_voc(path: str, reading: Reading, options: VocOptions = VocOptions()) -> Iterator[Document]:
    """Yields a grounded document for each XML file of a folder as Pascal VOC has them.

    Corners are pixels counted from 1, both inclusive (VOC devkit, "Annotations").

    Args:
      path: folder with `Annotations` and `JPEGImages`, or with the XML files themselves.
      reading: how to read.
      options: which pictures to take, and where they are.

    Raises:
      DataError: the folder has no XML files, or there is no such set or folder of pictures.
    """
    folder = epath.Path(path)
    inner = folder / "Annotations"
    xmls = _files(inner if inner.exists() else folder, ".xml", path)
    if options.image_set is not None:
        wanted = _image_set(folder / "ImageSets" / "Main" / f"{options.image_set}.txt")
        by_stem = {xml.stem: xml for xml in xmls}
        xmls = [by_stem.get(stem, inner / f"{stem}.xml") for stem in wanted]
    pictures = folder / "JPEGImages"
    store = picture_store(options.images or str(pictures if pictures.exists() else folder), path)

    def parse(key: str, xml: epath.Path) -> Iterator[Document]:
        picture = parse_voc(_read(xml), reading.note)
        load = functools.partial(boxes.find_picture, store, picture.name)
        yield boxes.grounded_document(key, picture, load, reading, options)

    return reading.documents(boxes.named_once((xml.name, xml) for xml in xmls), parse)


def parse_voc(raw: bytes, note: Note) -> LabelledPicture:
    """Reads the XML of a picture.

    Raises:
      Unusable: it is not XML of the kind.
    """
    try:
        root = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        raise Unusable("not XML") from None
    name = root.findtext("filename", "").strip()
    if not name:
        raise Unusable("no <filename>")
    found = boxes.read_boxes(root.iter("object"), _read_object, note)
    size = boxes.noted_size(root.findtext("size/width"), root.findtext("size/height"))
    return LabelledPicture(name, found, boxes.PIXELS, size)


def _read_object(item: ElementTree.Element) -> LabelledBox:
    texts = [item.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = boxes.numbers(texts, 4)
    if x2 <= 1 and y2 <= 1:  # fractions, which is for all boxes of the picture to say
        return LabelledBox(item.findtext("name", ""), (x1, y1, x2, y2))
    return LabelledBox(item.findtext("name", ""), (max(x1 - 1, 0.0), max(y1 - 1, 0.0), x2, y2))


def _image_set(path: epath.Path) -> list[str]:
    if not path.exists():
        raise DataError(f"There is no {str(path)!r}: mend --image-set.")
    lines = (line.decode("utf-8", "replace").split() for _, line in files.lines(str(path)))
    return [words[0] for words in lines if words]


@dataclasses.dataclass(frozen=True)
class LabelmeOptions(BoxOptions):
    """Settings of `read_labelme`."""

    images: str | None = option(
        None, f"{IMAGES_HELP}; by default where the JSON files are, or what they hold"
    )


def read_labelme(
    path: str, reading: Reading, options: LabelmeOptions = LabelmeOptions()
) -> Iterator[Document]:
    """Yields a grounded document for each JSON file of a folder that LabelMe wrote.

    Of polygons, circles and the like the bounding box is taken.

    Args:
      path: of the folder.
      reading: how to read.
      options: where the pictures are. Those within the JSON files need none.

    Raises:
      DataError: the folder has no JSON files, or there is no such folder of pictures.
    """
    store = picture_store(options.images or path, path)

    def parse(key: str, file: epath.Path) -> Iterator[Document]:
        record = parse_json(_read(file))
        picture = parse_labelme(record, reading.note)

        def load() -> bytes:
            if isinstance(record.get("imageData"), str):
                return _decoded(record["imageData"])
            return boxes.find_picture(store, picture.name)

        yield boxes.grounded_document(key, picture, load, reading, options)

    jsons = _files(epath.Path(path), ".json", path)
    return reading.documents(((json.name, json) for json in jsons), parse)


def parse_labelme(record: dict[str, Any], note: Note) -> LabelledPicture:
    """Reads the JSON of a picture.

    Raises:
      Unusable: it is not of the kind.
    """
    if not isinstance(record.get("shapes"), list):
        raise Unusable("no list 'shapes'")
    found = boxes.read_boxes(record["shapes"], _read_shape, note)
    size = boxes.noted_size(record.get("imageWidth"), record.get("imageHeight"))
    return LabelledPicture(string(record, "imagePath"), found, boxes.PIXELS, size)


def _read_shape(shape: Any) -> LabelledBox:
    if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
        raise Unusable("shape has no points")
    points = [boxes.numbers(point, 2) for point in shape["points"]]
    if shape.get("shape_type") == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    if len(points) < 2:
        raise Unusable("shape is a point")
    xs, ys = zip(*points, strict=True)
    return LabelledBox(string(shape, "label"), (min(xs), min(ys), max(xs), max(ys)))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unusable("picture not base64") from None


def _files(folder: epath.Path, ending: str, named: str) -> list[epath.Path]:
    found = sorted(entry for entry in folder.iterdir() if entry.name.endswith(ending))
    if not found:
        raise DataError(f"INPUT: the folder {named!r} has no {ending} files.")
    return found


def _read(path: epath.Path) -> bytes:
    return boxes.read_file(path, "annotations missing")
