"""What the readers of benchmarks share: files, fields, pictures, and examples that are lost.

An example that cannot be asked is never dropped silently: it stands among the `problems` of a
`Reading` with its id and a reason, and whoever scores counts it as wrong.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kosmos2_jax.data.benchmarks.records import Record
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.grounding.boxes import Box

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Problem:
    """An example that cannot be asked.

    Attributes:
      id: of the example, or where it stands in its file.
      reason: a short phrase.
    """

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """A split of a benchmark as its files give it.

    Attributes:
      records: in the order of the files.
      problems: examples that are lost.
    """

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]


class Collector:
    """Gathers the records of a split and what is wrong with the others."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._problems: list[Problem] = []

    def add(self, identity: str, make: Callable[[], Record]) -> None:
        """Adds the record that `make` returns; if it raises `Unusable`, or if there is one of the
        same id already, a problem."""
        try:
            record = make()
            if record.id in self._records:
                raise Unusable("its id is there already")
        except Unusable as problem:
            self.lose(identity, problem.reason)
            return
        self._records[record.id] = record

    def lose(self, identity: str, reason: str) -> None:
        """Notes an example that cannot be asked."""
        self._problems.append(Problem(identity, reason))

    def result(self, path: Path) -> Reading:
        """Returns what was gathered.

        Raises:
          DataError: there is no record at all.
        """
        if not self._records:
            first = f"; the first one: {_shown(self._problems[0])}" if self._problems else ""
            raise DataError(f"{str(path)!r} has no example that can be used{first}.")
        return Reading(tuple(self._records.values()), tuple(self._problems))


def _shown(problem: Problem) -> str:
    return f"{problem.id}: {problem.reason}"


class Pictures:
    """Knows which pictures a folder holds; each folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, frozenset[str]] = {}

    def path(self, name: str) -> str:
        """Returns the path of a picture, which may lie in a folder below.

        Raises:
          Unusable: it is not there, or its name leads out of the folder.
        """
        inner, _, base = name.rpartition("/")
        if os.path.isabs(name) or ".." in name.split("/"):
            raise Unusable(f"picture {name!r} is outside of the folder")
        if inner not in self._names:
            folder = self._folder / inner
            names = os.listdir(folder) if folder.is_dir() else ()
            self._names[inner] = frozenset(names)
        if base not in self._names[inner]:
            raise Unusable(f"picture {name!r} is missing")
        return str(self._folder / name)


def load_json(path: Path, *fields: str) -> dict[str, Any]:
    """Returns the JSON object of a file, which has these fields, each a list.

    Raises:
      DataError: the file is missing, is no JSON in UTF-8, or lacks a field.
    """
    value = _parsed(path)
    for field in fields:
        if not isinstance(value, dict) or not isinstance(value.get(field), list):
            raise DataError(f"{str(path)!r} has no list {field!r}: it is another file or version.")
    return value


def load_json_list(path: Path) -> list[Any]:
    """Returns the JSON list of a file.

    Raises:
      DataError: the file is missing, or is no JSON list in UTF-8.
    """
    value = _parsed(path)
    if not isinstance(value, list):
        raise DataError(f"{str(path)!r} is not a JSON list: it is another file or version.")
    return value


def _parsed(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{str(path)!r} is not JSON: get it again.") from None


def read_text(path: Path) -> str:
    """Returns a text file in UTF-8.

    Raises:
      DataError: it is missing or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{str(path)!r} is not text in UTF-8: get it again.") from None


def json_lines(path: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yields the place of each line that is not blank, and what parses it or raises `Unusable`."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"line {number}", lambda line=line: _object(line)


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None
    if not isinstance(value, dict):
        raise Unusable("not a JSON object")
    return value


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the place and the values of each row of a CSV file with a header.

    Raises:
      DataError: the file is missing, is not UTF-8, or lacks a column.
    """
    rows = csv.DictReader(read_text(path).splitlines(keepends=True))
    missing = [name for name in columns if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"{str(path)!r} has no column {missing[0]!r}: it is another file.")
    for row in rows:
        yield f"line {rows.line_num}", row


def take(record: Any, field: str, kind: type[T]) -> T:
    """Returns a field of a record, which must be of a kind.

    Raises:
      Unusable: the record is no JSON object, or the field is missing or something else.
    """
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Unusable(f"no {field!r} of type {kind.__name__}")
    return value


def line_of(record: Any, field: str) -> str:
    """Returns a text field as one line, without white space at its ends.

    Raises:
      Unusable: it is missing, no text, or empty.
    """
    text = " ".join(take(record, field, str).split("\n")).strip()
    if not text:
        raise Unusable(f"empty {field!r}")
    return text


def whole(text: Any, choices: Iterable[int], what: str) -> int:
    """Returns a number that is one of `choices`, whether written as a number or as text.

    Raises:
      Unusable: it is another one or none.
    """
    allowed = {str(choice): choice for choice in choices}
    found = None if isinstance(text, bool) else allowed.get(str(text).strip())
    if found is None:
        raise Unusable(f"{what} is {text!r}, not one of {', '.join(allowed)}")
    return found


def pixel_box(corners: Sequence[Any]) -> Box:
    """Returns a true box, in pixels, if it has an area.

    Raises:
      Unusable: it has not four numbers, or is reversed, without area or not finite.
    """
    try:
        box = Box(*(float(corner) for corner in corners))
    except (TypeError, ValueError):
        raise Unusable(f"box {corners!r} is not four numbers") from None
    if not all(map(math.isfinite, box)) or box.x1 >= box.x2 or box.y1 >= box.y2:
        raise Unusable(f"box ({', '.join(f'{value:g}' for value in box)}) has no area")
    return box
