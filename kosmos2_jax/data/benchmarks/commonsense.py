"""Sizes and colours of things as choices without pictures (spec section 5.8).

The files are those that the authors of Kosmos-1 measured an earlier model on (Wang et al. 2023,
https://github.com/Victorwz/VaLM, folder `data`): RelativeSize (Bagherinezhad et al. 2016),
MemoryColor (Norlund et al. 2021) and ColorTerms (Bruni et al. 2012).
"""

from __future__ import annotations

import functools
from pathlib import Path

from kosmos2_jax.data.benchmarks.reading import Collector, Reading, csv_rows, line_of, read_text
from kosmos2_jax.data.benchmarks.records import ChoiceRecord, Option
from kosmos2_jax.data.skips import Unusable

RELATIVE_SIZE_FILE = "sizePairsFull.txt"
MEMORY_COLOR_FILE = "memory_color_data.csv"
COLOR_TERMS_FILE = "color-concrete-objects.csv"

# The eleven labels of both sets of colours (spec section 5.8).
COLORS = (
    "black",
    "blue",
    "brown",
    "green",
    "grey",
    "orange",
    "pink",
    "purple",
    "red",
    "white",
    "yellow",
)


def read_relative_size(folder: Path) -> Reading:
    """Reads pairs such as "sofa cat": the first is the larger one, so that "Yes" is always right.

    Raises:
      DataError: the file is missing or is another one.
    """
    path = folder / RELATIVE_SIZE_FILE
    collector = Collector()

    def make(identity: str, words: list[str]) -> ChoiceRecord:
        if len(words) != 2:
            raise Unusable("not two words")
        prompt = f"Is {words[0]} larger than {words[1]}?"
        return ChoiceRecord(identity, (Option(prompt, "Yes"), Option(prompt, "No")), 0)

    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        identity = " ".join(words) or f"line {number}"
        collector.add(identity, functools.partial(make, identity, words))
    return collector.result(path)


def read_memory_color(folder: Path) -> Reading:
    """Reads things with the colour that people remember; a thing is "the inside of a pineapple".

    Raises:
      DataError: the file is missing or is another one.
    """
    return _read_colors(folder / MEMORY_COLOR_FILE, "Index", "Item", "Color", "Descriptor")


def read_color_terms(folder: Path) -> Reading:
    """Reads things with their colour.

    Raises:
      DataError: the file is missing or is another one.
    """
    return _read_colors(folder / COLOR_TERMS_FILE, "object", "object", "color")


def _read_colors(
    path: Path, identity: str, item: str, color: str, descriptor: str | None = None
) -> Reading:
    """A table with columns of the id, a thing and its colour, perhaps of words before the thing."""
    columns = [identity, item, color] + ([] if descriptor is None else [descriptor])
    collector = Collector()
    for where, row in csv_rows(path, columns):
        said = "" if descriptor is None else row[descriptor] or ""
        make = functools.partial(_color, row, item, color, said, row[identity] or where)
        collector.add(row[identity] or where, make)
    return collector.result(path)


def _color(
    row: dict[str, str], item: str, color: str, descriptor: str, identity: str
) -> ChoiceRecord:
    thing = f"{descriptor.strip()} {line_of(row, item)}".strip()
    right = line_of(row, color).lower()
    if right not in COLORS:
        raise Unusable(f"colour {right!r} is not one of the eleven")
    prompt = f"The color of {thing} is?"
    return ChoiceRecord(
        identity, tuple(Option(prompt, name) for name in COLORS), COLORS.index(right)
    )
