"""Captioning on COCO and Flickr30k: Karpathy's splits, and COCO's own files (spec section 5.5).

Karpathy and Fei-Fei 2015, https://cs.stanford.edu/people/karpathy/deepimagesent/.
"""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Pictures,
    Reading,
    line_of,
    load_json,
    take,
)
from kosmos2_jax.data.benchmarks.records import CaptionRecord
from kosmos2_jax.data.skips import Unusable

# File, and the folder of the pictures, of each set.
_KARPATHY = {
    "flickr30k": ("dataset_flickr30k.json", "flickr30k-images"),
    "coco": ("dataset_coco.json", ""),
}


def karpathy_files(name: str, split: str) -> tuple[str, ...]:
    """Returns what `read_karpathy` needs below its folder."""
    file, images = _KARPATHY[name]
    return (file, images or ("train2014" if split == "train" else "val2014"))


def read_karpathy(name: str, folder: Path, split: str) -> Reading:
    """Reads the pictures of one of Karpathy's splits with all their captions.

    Raises:
      DataError: a file is missing or is another one.
    """
    file, images = _KARPATHY[name]
    collector, pictures = Collector(), Pictures(folder / images)

    def make(identity: str, item: dict[str, Any]) -> CaptionRecord:
        captions = tuple(line_of(sentence, "raw") for sentence in take(item, "sentences", list))
        if not captions:
            raise Unusable("no captions")
        inner = f"{item['filepath']}/" if "filepath" in item else ""
        image = pictures.path(inner + take(item, "filename", str))
        return CaptionRecord(identity, image, captions)

    for number, item in enumerate(load_json(folder / file, "images")["images"]):
        if not isinstance(item, dict):
            collector.lose(f"image {number}", "not a JSON object")
        elif item.get("split") == split:
            identity = str(item.get("cocoid", item.get("imgid", f"image {number}")))
            collector.add(identity, functools.partial(make, identity, item))
    return collector.result(folder / file)


def coco_files(split: str) -> tuple[str, ...]:
    """Returns what `read_coco` needs below its folder."""
    return (split, f"annotations/captions_{split}.json")


def read_coco(folder: Path, split: str) -> Reading:
    """Reads the pictures of COCO's own annotations with all their captions.

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / coco_files(split)[1]
    content = load_json(path, "images", "annotations")
    collector, pictures = Collector(), Pictures(folder / split)
    captions: dict[int, list[Any]] = collections.defaultdict(list)
    for number, annotation in enumerate(content["annotations"]):
        image = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(image, int):
            captions[image].append(annotation)
        else:
            collector.lose(f"annotation {number}", "no 'image_id' of type int")
    known = {str(image.get("id")) for image in content["images"] if isinstance(image, dict)}
    for image in sorted(number for number in captions if str(number) not in known):
        collector.lose(str(image), "has captions but is not among the images")

    def make(identity: str, item: dict[str, Any]) -> CaptionRecord:
        texts = tuple(line_of(a, "caption") for a in captions.get(take(item, "id", int), ()))
        if not texts:
            raise Unusable("no captions")
        return CaptionRecord(identity, pictures.path(take(item, "file_name", str)), texts)

    for number, item in enumerate(content["images"]):
        identity = str(item["id"]) if isinstance(item, dict) and "id" in item else f"image {number}"
        collector.add(identity, functools.partial(make, identity, item))
    return collector.result(path)
