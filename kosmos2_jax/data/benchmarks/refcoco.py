"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions (spec sections 5.3 and 5.4).

Comprehension is asked on MDETR's JSON, as the papers do; generation needs all expressions of an
object, which the refer toolkit's files have (Yu et al. 2016, https://github.com/lichengunc/refer).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.plain_pickle import load_plain_pickle
from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Pictures,
    Reading,
    line_of,
    load_json,
    pixel_box,
    take,
)
from kosmos2_jax.data.benchmarks.records import ReferringRecord
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.grounding.boxes import Box

SETS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}
IMAGES = "train2014"
# Which of the toolkit's splits the papers use (spec section 5.3).
_REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}


def comprehension_files(name: str, split: str) -> tuple[str, ...]:
    """Returns what `read_comprehension` needs below its folder."""
    return (IMAGES, f"mdetr_annotations/finetune_{name}_{split}.json")


def read_comprehension(name: str, folder: Path, split: str) -> Reading:
    """Reads MDETR's JSON: one expression for each annotation, in the order of the annotations.

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / comprehension_files(name, split)[1]
    content = load_json(path, "images", "annotations")
    images = _by_id(content["images"], path)
    collector, pictures = Collector(), Pictures(folder)

    def make(identity: str, annotation: Any) -> ReferringRecord:
        image = images.get(take(annotation, "image_id", int))
        if image is None:
            raise Unusable(f"its image {annotation['image_id']} is not in the file")
        expression = take(image, "caption", str)
        return _record(identity, (expression,), annotation, image, pictures)

    for number, annotation in enumerate(content["annotations"]):
        known = isinstance(annotation, dict) and "id" in annotation
        identity = str(annotation["id"]) if known else f"annotation {number}"
        collector.add(identity, functools.partial(make, identity, annotation))
    return collector.result(path)


def generation_files(name: str, split: str) -> tuple[str, ...]:
    """Returns what `read_generation` needs below its folder."""
    return (IMAGES, f"{name}/instances.json", f"{name}/{_REFS[name]}")


def read_generation(name: str, folder: Path, split: str) -> Reading:
    """Reads the refer toolkit's files: each object of a split with all its expressions.

    The pickle is read as data only: see `load_plain_pickle`.

    Raises:
      DataError: a file is missing or is another one, or the pickle holds more than containers.
    """
    _, instances_name, refs_name = generation_files(name, split)
    content = load_json(folder / instances_name, "images", "annotations")
    images = _by_id(content["images"], folder / instances_name)
    annotations = _by_id(content["annotations"], folder / instances_name)
    refs = load_plain_pickle(folder / refs_name)
    if not isinstance(refs, list):
        raise DataError(f"{str(folder / refs_name)!r} holds no list: it is another file.")
    collector, pictures = Collector(), Pictures(folder)

    def make(identity: str, ref: dict[str, Any]) -> ReferringRecord:
        annotation = annotations.get(take(ref, "ann_id", int))
        image = images.get(take(ref, "image_id", int))
        if annotation is None or image is None:
            raise Unusable("its object or image is not in instances.json")
        expressions = tuple(line_of(s, "sent") for s in take(ref, "sentences", list))
        if not expressions:
            raise Unusable("no expressions")
        return _record(identity, expressions, annotation, image, pictures)

    for number, ref in enumerate(refs):
        if not isinstance(ref, dict):
            collector.lose(f"ref {number}", "not a dictionary")
        elif ref.get("split") == split:
            identity = str(ref.get("ref_id", f"ref {number}"))
            collector.add(identity, functools.partial(make, identity, ref))
    return collector.result(folder / refs_name)


def _by_id(items: list[Any], path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for item in items:
        identity = item.get("id") if isinstance(item, dict) else None
        if not isinstance(identity, int) or identity in found:
            raise DataError(
                f"{str(path)!r} has no id or the same id twice ({identity!r}): get it again."
            )
        found[identity] = item
    return found


def _record(
    identity: str,
    expressions: tuple[str, ...],
    annotation: dict[str, Any],
    image: dict[str, Any],
    pictures: Pictures,
) -> ReferringRecord:
    name = take(image, "file_name", str)
    folder = "val2014" if "val2014" in name else IMAGES
    size = (take(image, "width", int), take(image, "height", int))
    box = _corners(take(annotation, "bbox", list))
    return ReferringRecord(identity, pictures.path(f"{folder}/{name}"), size, expressions, box)


def _corners(bbox: list[Any]) -> Box:
    """COCO's left, top, width and height as corners."""
    try:
        left, top, width, height = bbox
        return pixel_box((left, top, left + width, top + height))
    except (TypeError, ValueError):
        raise Unusable(f"box {bbox!r} is not four numbers") from None
