"""ImageNet's validation set as a task of naming (spec section 5.8)."""

from __future__ import annotations

from pathlib import Path

from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Pictures,
    Reading,
    csv_rows,
    line_of,
    read_text,
)
from kosmos2_jax.data.benchmarks.records import NameRecord
from kosmos2_jax.data.skips import DataError, Unusable

# As in the download of Kaggle's ImageNet Object Localization Challenge.
FILES = ("ILSVRC/Data/CLS-LOC/val", "LOC_synset_mapping.txt", "LOC_val_solution.csv")


def read_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the names of each class from lines such as "n01440764 tench, Tinca tinca".

    Raises:
      DataError: the file is missing, or a line is no class with names.
    """
    names = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        synset, _, listed = line.partition(" ")
        parts = tuple(part.strip() for part in listed.split(",") if part.strip())
        if not synset.startswith("n") or not parts or synset in names:
            raise DataError(f"Line {number} of {str(path)!r} is no new class with names: {line!r}.")
        names[synset] = parts
    return names


def read(folder: Path) -> Reading:
    """Reads the validation pictures with all names of their class.

    Raises:
      DataError: a file is missing or is another one.
    """
    images, mapping, solution = FILES
    names = read_names(folder / mapping)
    collector, pictures = Collector(), Pictures(folder / images)

    def make(row: dict[str, str]) -> NameRecord:
        identity = line_of(row, "ImageId")
        synset = line_of(row, "PredictionString").partition(" ")[0]
        if synset not in names:
            raise Unusable(f"class {synset!r} has no name")
        return NameRecord(identity, pictures.path(f"{identity}.JPEG"), names[synset])

    for where, row in csv_rows(folder / solution, ("ImageId", "PredictionString")):
        collector.add(row["ImageId"] or where, lambda row=row: make(row))
    return collector.result(folder / solution)
