"""YOLO: a text file of classes and boxes beside each picture, and a data.yaml that names classes.

Pictures lie in `images/…/NAME.jpg`, their boxes in `labels/…/NAME.txt` (or beside the picture), a
line each: class number, centre x, centre y, width, height, as fractions; a sixth number is a
score. A line of more numbers is a polygon, of which the bounding box is taken
(docs.ultralytics.com/datasets).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.label_captions import LabelledBox
from kosmos2_jax.data.readers import boxes, files
from kosmos2_jax.data.readers.base import Reading, option
from kosmos2_jax.data.readers.boxes import BoxOptions, LabelledPicture
from kosmos2_jax.data.skips import DataError, Unusable

_YAML = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class YoloOptions(BoxOptions):
    """Settings of `read_yolo`."""

    subset: str = option("train", "which pictures of data.yaml to take: train, val or test")


def find_yolo(inputs: Sequence[str], options: YoloOptions) -> list[str]:
    """Returns the files that name the classes: data.yaml, or classes.txt of a folder without.

    Raises:
      DataError: an input is not there, or has no such file.
    """
    found = []
    for given in inputs:
        for path in files.expand_glob(given, "INPUT"):
            found.append(str(_names_file(epath.Path(path))))
    return found


def _names_file(path: epath.Path) -> epath.Path:
    if not path.is_dir():
        return path
    tables = sorted(entry for entry in path.iterdir() if entry.suffix in _YAML)
    texts = [path / "classes.txt", path / "labels" / "classes.txt"]
    found = tables or [text for text in texts if text.exists()]
    if not found:
        raise DataError(
            f"INPUT: the folder {str(path)!r} has neither data.yaml nor classes.txt: put one "
            "there that names the classes."
        )
    if len(tables) > 1:
        raise DataError(f"INPUT: {str(path)!r} has {len(tables)} .yaml files: name one of them.")
    return found[0]


def read_yolo(
    path: str, reading: Reading, options: YoloOptions = YoloOptions()
) -> Iterator[Document]:
    """Yields a grounded document for each picture of a YOLO data set.

    Args:
      path: of data.yaml or classes.txt.
      reading: how to read.
      options: which pictures to take.

    Raises:
      DataError: the file is malformed, or there are no pictures where it says.
    """
    folder = epath.Path(boxes.own_folder(path))
    if path.endswith(_YAML):
        names, places = _read_yaml(path, options.subset)
    else:
        names, places = _read_classes(path), [folder.parent if folder.name == "labels" else folder]

    def parse(key: str, image: epath.Path) -> Iterator[Document]:
        picture = LabelledPicture(
            key, _read_labels(label_file(image), names, reading), boxes.FRACTIONS
        )
        load = functools.partial(boxes.read_file, image, "picture missing")
        yield boxes.grounded_document(key, picture, load, reading, options)

    return reading.documents(_records(_images(places), folder), parse)


def label_file(image: epath.Path) -> epath.Path:
    """Where the boxes of a picture are: the last folder `images` of its path is `labels`."""
    parts = list(image.parts)
    inner = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if inner:
        parts[inner[-1]] = "labels"
    return epath.Path(*parts).with_suffix(".txt")


def _read_classes(path: str) -> dict[int, str]:
    return dict(enumerate(line.decode("utf-8", "replace") for _, line in files.lines(path)))


def _read_yaml(path: str, subset: str) -> tuple[dict[int, str], list[epath.Path]]:
    import yaml

    with files.open_file(path) as stream:
        try:
            data = yaml.safe_load(stream)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise DataError(f"{path!r} is not YAML: mend it.") from None
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{path!r} has no 'names' of classes: give a list, or names by number.")
    places = data.get(subset)
    places = places if isinstance(places, list) else [places]
    if not all(isinstance(place, str) for place in places):
        raise DataError(f"{path!r} has no {subset!r}: give --subset one of {', '.join(data)}.")
    root = str(data.get("path") or "")
    return names, [_find_place(path, root, place) for place in places]


def _find_place(path: str, root: str, place: str) -> epath.Path:
    """Where pictures lie. Exports are known to say `../train/images` for `train/images`."""
    folder = epath.Path(boxes.own_folder(path))
    for start in (folder / root, epath.Path(root or "."), folder):
        for inner in (place, place.removeprefix("../")):
            if (start / inner).exists():
                return start / inner
    raise DataError(f"{path!r} names {place!r}, which is not there: mend 'path' or the name in it.")


def _images(places: Sequence[epath.Path]) -> Iterator[epath.Path]:
    """The pictures below folders, and those that lists of pictures (.txt) name."""
    for place in places:
        if place.is_dir():
            yield from _walk(place)
        else:
            for _, line in files.lines(str(place)):
                yield place.parent / line.decode("utf-8", "replace").strip()


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _walk(entry)
        elif entry.suffix[1:].lower() in files.PICTURE_ENDINGS:
            yield entry


def _records(images: Iterator[epath.Path], folder: epath.Path) -> Iterator[tuple[str, Any]]:
    seen = set()
    for number, image in enumerate(images):
        key = str(image.relative_to(folder) if image.is_relative_to(folder) else image)
        labels = label_file(image)
        if labels in seen:
            yield f"{key}#{number}", Unusable("picture named twice, or two with one file of labels")
        else:
            seen.add(labels)
            yield key, image


def _read_labels(path: epath.Path, names: dict[int, str], reading: Reading) -> list[LabelledBox]:
    if not path.exists():
        return []
    rows = [line.decode("utf-8", "replace").split() for _, line in files.lines(str(path))]
    if not all(row and row[0].isdecimal() for row in rows):
        raise Unusable("line does not begin with the number of a class")
    if not all(int(row[0]) in names for row in rows):
        raise Unusable("number of a class that has no name")
    return boxes.read_boxes(rows, functools.partial(_read_row, names=names), reading.note)


def _read_row(row: list[str], names: dict[int, str]) -> LabelledBox:
    label, values = names[int(row[0])], row[1:]
    if len(values) > 5 and len(values) % 2 == 0:
        corners = boxes.numbers(values, len(values))
        xs, ys = corners[::2], corners[1::2]
        return LabelledBox(label, (min(xs), min(ys), max(xs), max(ys)))
    x, y, width, height = boxes.numbers(values[:4] if len(values) == 5 else values, 4)
    (score,) = boxes.numbers(values[4:], 1) if len(values) == 5 else (1.0,)
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return LabelledBox(label, corners, score)
