"""COCO: one JSON of images, annotations and categories (cocodataset.org/#format-data)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.label_captions import LabelledBox
from kosmos2_jax.data.readers import boxes, files
from kosmos2_jax.data.readers.base import Note, Reading, option, string
from kosmos2_jax.data.readers.boxes import BoxOptions, LabelledPicture
from kosmos2_jax.data.readers.pictures import IMAGES_HELP, picture_store
from kosmos2_jax.data.skips import FILTERED, DataError, Unusable


@dataclasses.dataclass(frozen=True)
class CocoOptions(BoxOptions):
    """Settings of `read_coco`."""

    images: str | None = option(None, f"{IMAGES_HELP}; by default that of the JSON itself")
    captions: str | None = option(
        None, "COCO's JSON of captions for the same images; captions in INPUT need no naming"
    )


def read_coco(
    path: str, reading: Reading, options: CocoOptions = CocoOptions()
) -> Iterator[Document]:
    """Yields a grounded document for each picture of a file of COCO's object instances.

    Boxes are in pixels of the noted size. Crowds are left out. Captions are "caption" of an image
    or of annotations, in this file or in `options.captions`; of several the one that names most
    labels is taken.

    Args:
      path: JSON file. It is read whole: that of COCO itself takes some GB of memory.
      reading: how to read.
      options: where pictures and captions are.

    Raises:
      DataError: the file, or that of captions, is not COCO's JSON, a category is named twice, or
        there are no pictures where `options.images` says.
    """
    data = _load(path, "images", "annotations", "categories")
    names = _categories(data["categories"], path)
    captions = _captions(data)
    if options.captions is not None:
        for image, more in _captions(_load(options.captions, "annotations")).items():
            captions[image] += more
    store = picture_store(options.images or boxes.own_folder(path), path)

    def parse(key: str, record: Any) -> Iterator[Document]:
        image, annotations = record
        found = captions[_id(image.get("id"))]
        picture = parse_coco(image, annotations, names, found, reading.note)
        load = functools.partial(boxes.find_picture, store, picture.name)
        yield boxes.grounded_document(key, picture, load, reading, options)

    return reading.documents(boxes.named_once(_records(data)), parse)


def parse_coco(
    image: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    names: Mapping[int | str, str],
    captions: Sequence[str],
    note: Note,
) -> LabelledPicture:
    """Reads an image and what is said of it.

    Args:
      image: entry of "images".
      annotations: those of the image that have boxes.
      names: of categories, by id.
      captions: of the image, beside the one in its entry.
      note: told what was dropped.

    Raises:
      Unusable: the image has no name, or a category none.
    """
    if any(_id(annotation.get("category_id")) not in names for annotation in annotations):
        raise Unusable("category_id that 'categories' lacks")
    return LabelledPicture(
        string(image, "file_name"),
        boxes.read_boxes(annotations, functools.partial(_read_box, names=names), note),
        boxes.PIXELS,
        boxes.noted_size(image.get("width"), image.get("height")),
        [*_strings([image.get("caption")]), *captions],
    )


def _load(path: str, *fields: str) -> dict[str, list[Any]]:
    with files.open_file(path) as stream:
        try:
            data = json.load(stream)
        except (ValueError, RecursionError):
            raise DataError(f"{path!r} is not JSON, or cut short: get it again.") from None
    for field in fields:
        if not isinstance(data, dict) or not isinstance(data.get(field), list):
            raise DataError(f"{path!r} has no list {field!r}: give a JSON file as COCO's are.")
    return data


def _categories(categories: list[Any], path: str) -> dict[int | str, str]:
    names: dict[int | str, str] = {}
    for category in categories:
        if not isinstance(category, dict) or not isinstance(category.get("name"), str):
            raise DataError(f"{path!r} has a category without a name: mend 'categories'.")
        number = _id(category.get("id"))
        if names.setdefault(number, category["name"]) != category["name"]:
            raise DataError(
                f"{path!r} has two categories of id {number}, {names[number]!r} and "
                f"{category['name']!r}: mend 'categories'."
            )
    return names


def _id(value: Any) -> int | str:
    """An id as a key; what cannot be one is like none."""
    return value if isinstance(value, int | str) else ""


def _strings(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _captions(data: dict[str, list[Any]]) -> collections.defaultdict[int | str, list[str]]:
    captions: collections.defaultdict[int | str, list[str]] = collections.defaultdict(list)
    for annotation in data["annotations"]:
        if isinstance(annotation, dict):
            captions[_id(annotation.get("image_id"))] += _strings([annotation.get("caption")])
    return captions


def _records(data: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    by_image: dict[int | str, list[dict[str, Any]]] = collections.defaultdict(list)
    broken = 0
    for annotation in data["annotations"]:
        if not isinstance(annotation, dict):
            broken += 1
        elif "bbox" in annotation or "category_id" in annotation:
            by_image[_id(annotation.get("image_id"))].append(annotation)
    ids = set()
    for number, image in enumerate(data["images"]):
        if not isinstance(image, dict):
            yield f"image {number}", Unusable("image is not a JSON object")
        elif _id(image.get("id")) in ids:
            yield f"image {number}", Unusable("two images of one id")
        else:
            ids.add(_id(image.get("id")))
            annotations = by_image.pop(_id(image.get("id")), [])
            yield str(image.get("file_name", number)), (image, annotations)
    yield from ((f"image_id {i}", Unusable("image_id that 'images' lacks")) for i in by_image)
    yield from ((f"annotation {i}", Unusable("annotation is broken")) for i in range(broken))


def _read_box(annotation: dict[str, Any], names: Mapping[int | str, str]) -> LabelledBox:
    if annotation.get("iscrowd"):
        raise Unusable(f"{FILTERED}box of a crowd")
    left, top, width, height = boxes.numbers(annotation.get("bbox"), 4)
    corners = (left, top, left + width, top + height)
    return LabelledBox(names[_id(annotation["category_id"])], corners)
