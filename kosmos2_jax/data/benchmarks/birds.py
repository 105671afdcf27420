"""Pictures of birds with descriptions of the classes (spec section 5.8).

Kosmos-1's set of three pairs of classes with twenty pictures each was never published; its first
pair is of CUB-200-2011. The layout is therefore this project's own:

    birds.json          {"groups": [{"category": "woodpecker", "classes": [
                          {"name": "downy woodpecker", "images": "downy",
                           "description": "Downy woodpecker has white spots on its black wings."},
                          {"name": "three toed woodpecker", ...}]}, ...]}
    downy/*.jpg         the pictures of a class, in the folder that it names
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.reading import Collector, Reading, line_of, load_json, take
from kosmos2_jax.data.benchmarks.records import DescribedRecord
from kosmos2_jax.data.skips import Unusable

FILES = ("birds.json",)
_ENDINGS = (".jpg", ".jpeg", ".png")


def read(folder: Path) -> Reading:
    """Reads the pictures, each with all classes of its group.

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / FILES[0]
    collector = Collector()
    for number, group in enumerate(load_json(path, "groups")["groups"]):
        try:
            category = line_of(group, "category")
            classes = [_class(folder, item) for item in take(group, "classes", list)]
            if len({name for name, _, _ in classes}) < max(len(classes), 2):
                raise Unusable("not two classes or more, each of another name")
        except Unusable as problem:
            collector.lose(f"group {number}", problem.reason)
            continue
        names, descriptions = (tuple(item[place] for item in classes) for place in (0, 1))
        for answer, (_, _, pictures) in enumerate(classes):
            for picture in pictures:
                identity = picture.relative_to(folder).as_posix()
                record = DescribedRecord(
                    identity, str(picture), category, names, descriptions, answer
                )
                collector.add(identity, functools.partial(_given, record))
    return collector.result(path)


def _given(record: DescribedRecord) -> DescribedRecord:
    return record


def _class(folder: Path, item: Any) -> tuple[str, str, list[Path]]:
    name, images = line_of(item, "name"), line_of(item, "images")
    if ".." in Path(images).parts or Path(images).is_absolute():
        raise Unusable(f"pictures {images!r} are outside of the folder")
    files = (path for path in (folder / images).glob("*") if path.suffix.lower() in _ENDINGS)
    pictures = sorted(files)
    if not pictures:
        raise Unusable(f"there are no pictures in {images!r}")
    return name, line_of(item, "description"), pictures
