"""Flickr30k Entities with MDETR's list of phrases: phrase grounding (spec section 5.2).

MDETR's JSON says which phrases are asked and where they stand in the caption; the true boxes come
from the Sentences and Annotations of Flickr30k Entities (Plummer et al. 2015,
https://github.com/BryanPlummer/flickr30k_entities).
"""

from __future__ import annotations

import dataclasses
import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Pictures,
    Reading,
    load_json,
    pixel_box,
    read_text,
    take,
)
from kosmos2_jax.data.benchmarks.records import PhraseRecord
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.grounding.boxes import Box

SPLITS = ("val", "test")
IMAGES = "flickr30k-images"
ENTITIES = "flickr30k_entities"


def files(split: str) -> tuple[str, ...]:
    """Returns what `read` needs below its folder."""
    mdetr = f"mdetr_annotations/final_flickr_separateGT_{split}.json"
    return (IMAGES, f"{ENTITIES}/Annotations", f"{ENTITIES}/Sentences", mdetr)


@dataclasses.dataclass(frozen=True)
class EntityPhrase:
    """A phrase as Sentences marks it.

    Attributes:
      text: its words, joined by spaces.
      entity: id of what it means, the key to its boxes; "0" for what is not visible.
      types: such as ("people",).
    """

    text: str
    entity: str
    types: tuple[str, ...]


def parse_sentence(line: str) -> tuple[str, tuple[EntityPhrase, ...]]:
    """Returns the plain words and the phrases of a line such as "[/EN#12/people A man] sits .".

    Raises:
      Unusable: a mark has no entity or no end.
    """
    words: list[str] = []
    phrases = []
    inside: list[str] | None = None
    entity, types = "", ()
    for token in line.split():
        if inside is None and token.startswith("["):
            mark = token.split("/")
            if len(mark) < 2 or not mark[1].startswith("EN#"):
                raise Unusable(f"mark {token!r} has no entity")
            entity, types, inside = mark[1][3:], tuple(mark[2:]), []
            continue
        closes = inside is not None and token.endswith("]")
        word = token[:-1] if closes else token
        words.append(word)
        if inside is not None:
            inside.append(word)
        if closes:
            phrases.append(EntityPhrase(" ".join(inside), entity, types))
            inside = None
    if inside is not None:
        raise Unusable(f"phrase {' '.join(inside)!r} has no end")
    return " ".join(words), tuple(phrases)


def parse_annotations(text: str) -> tuple[tuple[int, int], dict[str, tuple[Box, ...]]]:
    """Returns the picture's width and height and the boxes of each entity, in pixels.

    Entities without a box ("scene" and "nobox") are left out.

    Raises:
      Unusable: the XML is broken or of another kind, or a box has no area.
    """
    try:
        root = ElementTree.fromstring(text)
        size = (int(root.findtext("size/width", "")), int(root.findtext("size/height", "")))
    except (ElementTree.ParseError, ValueError):
        raise Unusable("its Annotations are no XML with a size") from None
    boxes: dict[str, tuple[Box, ...]] = {}
    for thing in root.iter("object"):
        place = thing.find("bndbox")
        if place is None:
            continue
        box = pixel_box([place.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")])
        for name in thing.findall("name"):
            entity = (name.text or "").strip()
            boxes[entity] = (*boxes.get(entity, ()), box)
    return size, boxes


def read(folder: Path, split: str) -> Reading:
    """Reads the phrases of a split in MDETR's order.

    As in the official script a phrase gets the boxes of the first phrase of the same text in its
    sentence, and of a phrase in several pieces the first piece is asked (trap T-22).

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / files(split)[-1]
    collector, pictures = Collector(), Pictures(folder / IMAGES)

    @functools.cache
    def entities(image: str) -> tuple[list[str], tuple[int, int], dict[str, tuple[Box, ...]]]:
        sentences = read_text(folder / ENTITIES / "Sentences" / f"{image}.txt").splitlines()
        annotations = read_text(folder / ENTITIES / "Annotations" / f"{image}.xml")
        return [line for line in sentences if line.strip()], *parse_annotations(annotations)

    for number, item in enumerate(load_json(path, "images")["images"]):
        where = f"image {number}"
        try:
            spans = take(item, "tokens_positive_eval", list)
        except Unusable as problem:
            collector.lose(where, problem.reason)
            continue
        for place, span in enumerate(spans):
            identity = f"{item.get('original_img_id')}_{item.get('sentence_id')}_{place}"
            make = functools.partial(_record, identity, item, span, pictures, entities)
            collector.add(identity, make)
    return collector.result(path)


def _record(
    identity: str,
    item: dict[str, Any],
    span: Any,
    pictures: Pictures,
    entities: Callable[[str], tuple[list[str], tuple[int, int], dict[str, tuple[Box, ...]]]],
) -> PhraseRecord:
    caption = take(item, "caption", str)
    try:
        (start, end), *_ = span
        phrase = caption[start:end]
    except (TypeError, ValueError):
        raise Unusable(f"span {span!r} is no list of starts and ends") from None
    try:
        sentences, size, boxes = entities(str(item.get("original_img_id")))
    except DataError as error:
        raise Unusable(str(error)) from None
    number = take(item, "sentence_id", int)
    if not 0 <= number < len(sentences):
        raise Unusable(f"Sentences has no line {number}")
    _, phrases = parse_sentence(sentences[number])
    wanted = phrase.strip()
    found = next((p for p in phrases if p.text == wanted and p.entity in boxes), None)
    if not wanted or found is None:
        raise Unusable(f"phrase {wanted!r} has no box in sentence {number}")
    if size != (item.get("width"), item.get("height")):
        raise Unusable(f"the picture is {size[0]}x{size[1]} in Annotations, not as in MDETR's list")
    image = pictures.path(take(item, "file_name", str))
    return PhraseRecord(
        identity, image, size, caption, start, end, found.types, boxes[found.entity]
    )
