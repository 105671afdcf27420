"""The same question about many pictures, written as it goes, resumed where it stopped.

The output has one line of JSON for each picture, in the order of the input:

    {"id": "photos/a.jpg", "task": "describe", "text": "...", "spans": [...], "problems": []}
    {"id": "photos/b.jpg", "task": "describe", "error": "Picture 'photos/b.jpg' is cut short ..."}
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kosmos2_jax.errors import ConfigError, Kosmos2Error
from kosmos2_jax.inference.engine import Engine
from kosmos2_jax.inference.questions import Question
from kosmos2_jax.inference.requests import Handle
from kosmos2_jax.line_file import LineFile

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".tif", ".tiff", ".avif")
_AHEAD = 16  # questions that are prepared before the first of them is answered


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture of a batch.

    Attributes:
      id: names it in the output; no other has it.
      image: file.
      fields: what a line of JSON says about it besides.
    """

    id: str
    image: Path
    fields: Mapping[str, Any]


@dataclasses.dataclass
class Counts:
    """Pictures of a batch: `done` before or now, `bad` ones of them, and all."""

    done: int
    bad: int
    total: int


def find_items(source: str) -> list[Item]:
    """The pictures of a folder and those in it, of a glob, or of a file of JSON lines.

    A line is `{"image": FILE, "id": ..., ...}`; the file's path counts from the folder of the
    lines, and is the id where there is none.

    Raises:
      Kosmos2Error: there are none, a line is malformed, or two have the same id.
    """
    path = Path(source)
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
        items = [Item(str(file), file, {}) for file in sorted(files) if file.is_file()]
    elif path.suffix == ".jsonl":
        items = list(_read_lines(path))
    else:
        names = sorted(glob.glob(source, recursive=True))
        items = [Item(name, Path(name), {}) for name in names if os.path.isfile(name)]
    if not items:
        raise Kosmos2Error(f"{source} has no pictures: give a folder, a glob or a .jsonl file.")
    counts = collections.Counter(item.id for item in items)
    (name, count) = counts.most_common(1)[0]
    if count > 1:
        raise Kosmos2Error(f"{source} has {count} pictures with the id {name!r}: make ids unique.")
    return items


def _read_lines(path: Path) -> Iterator[Item]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            image = fields.pop("image")
            yield Item(str(fields.pop("id", image)), path.parent / image, fields)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise Kosmos2Error(
                f'Line {number} of {path} is not an object with "image": correct it.'
            ) from None


class BatchFile:
    """The output: what is in it stays, however the program ended.

    Attributes:
      done: ids that it has.
      bad: how many of them have an error.
    """

    def __init__(self, path: Path, task: str) -> None:
        """Opens or creates the file, and takes off a last line that was not written to its end.

        Raises:
          Kosmos2Error: another program is writing to it, or it is of another task, or no output of
            a batch.
        """
        self._path, self._task = path, task
        self.done: set[str] = set()
        self.bad = 0
        busy = f"{path} is being written by another program: wait, or name another file."
        self._file = LineFile(path, self._read, Kosmos2Error(busy))

    def write(self, item: Item, result: Mapping[str, Any]) -> None:
        """Adds a line."""
        line = json.dumps({"id": item.id, "task": self._task, **result}, ensure_ascii=False)
        self._file.write(f"{line}\n")
        self.done.add(item.id)
        self.bad += "error" in result

    def __enter__(self) -> BatchFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line)
            name, task = entry["id"], entry["task"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"Line {number} of {self._path} is not of a batch: name another output."
            ) from None
        if task != self._task:
            raise ConfigError(
                f"{self._path} is of the task {task!r}, not {self._task!r}: name another output."
            )
        self.done.add(name)
        self.bad += "error" in entry


def run_batch(
    engine: Engine,
    items: Sequence[Item],
    ask: Callable[[Item], Question],
    output: BatchFile,
    progress: Callable[[Counts], None],
) -> Counts:
    """Asks about every picture that the output lacks.

    Args:
      engine: answers.
      items: all pictures.
      ask: makes the question; its `Kosmos2Error` is written as the picture's error.
      output: where answers go.
      progress: called after each.

    Raises:
      Exception: whatever stopped the engine; what was answered is kept.
    """
    counts = Counts(sum(item.id in output.done for item in items), output.bad, len(items))
    pending: collections.deque[tuple[Item, Question, Handle] | tuple[Item, str]] = (
        collections.deque()
    )

    def finish() -> None:
        item, *asked = pending.popleft()
        if len(asked) == 1:
            output.write(item, {"error": asked[0]})
        else:
            question, handle = asked
            results = [question.read(written).to_dict() for written in handle.result()]
            more = {"others": results[1:]} if len(results) > 1 else {}
            output.write(item, results[0] | more)
        counts.done, counts.bad = counts.done + 1, output.bad
        progress(counts)

    for item in items:
        if item.id in output.done:
            continue
        try:
            question = ask(item)
            pending.append((item, question, engine.submit(question.request, wait=True)))
        except Kosmos2Error as error:
            pending.append((item, str(error)))
        while len(pending) > _AHEAD:
            finish()
    while pending:
        finish()
    return counts
