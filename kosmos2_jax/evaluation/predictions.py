"""What a model answered, by example: JSON lines that go on growing and can be scored without it.

    {"task": "refcoco_val", "id": "12", "output": "<object>...</object>"}
    {"task": "copa", "id": "3", "scores": [[-0.2, -1.5], [-0.4]]}
    {"task": "refcoco_val", "id": "13", "error": "broken picture"}

`output` is markup, `scores` are natural log-probabilities of the tokens of each candidate. A
"question", where a line has one, is a digest of what was asked: it answers nothing else. Within the
program an answer is always text: `scores` are then their JSON, and what cannot be scored is empty,
which every task counts as wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kosmos2_jax.errors import PredictionError
from kosmos2_jax.line_file import LineFile

NO_ANSWER = ""
_SHOWN = 3  # ids that an error names


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A line.

    Attributes:
      id: of the example.
      output: markup; None where there are scores or an error.
      scores: of each candidate's tokens.
      error: why there is no answer.
      question: digest of what was asked; None where it was not noted.
    """

    id: str
    output: str | None = None
    scores: Sequence[Sequence[float]] | None = None
    error: str | None = None
    question: str | None = None

    @property
    def answer(self) -> str:
        """What the task reads; empty where there is nothing to score."""
        if self.scores is not None:
            return json.dumps(self.scores) if self.problem is None else NO_ANSWER
        return self.output or NO_ANSWER

    @property
    def problem(self) -> str | None:
        """Why it can only be wrong, or None."""
        if self.error is not None:
            return self.error
        if self.scores is not None:
            finite = all(value <= 0.0 for candidate in self.scores for value in candidate)
            return None if finite and self.scores and all(self.scores) else "scores of no use"
        return None if (self.output or "").strip() else "empty"

    def to_line(self, task: str) -> str:
        """The line, without its end."""
        fields = {
            "question": self.question,
            "output": self.output,
            "scores": self.scores,
            "error": self.error,
        }
        told = {name: value for name, value in fields.items() if value is not None}
        return json.dumps({"task": task, "id": self.id, **told}, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str | bytes, task: str, where: str) -> Prediction:
        """Inverse of `to_line`.

        Raises:
          PredictionError: it is no such line, or one of another task.
        """
        try:
            fields = json.loads(line)
            identity, of = fields["id"], fields["task"]
            told = ("output", "scores", "error", "question")
            found = cls(str(identity), *(fields.get(name) for name in told))
            found._check()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise PredictionError(
                f'{where} is not an object with "task", "id" and "output" or "scores": correct it.'
            ) from None
        if of != task:
            raise PredictionError(
                f"{where} is a prediction of {of!r}, not of {task!r}: name the right file."
            )
        return found

    def _check(self) -> None:
        given = [value for value in (self.output, self.scores, self.error) if value is not None]
        if len(given) != 1:
            raise ValueError
        if self.scores is None and not isinstance(given[0], str):
            raise TypeError
        if not isinstance(self.question, str | None):
            raise TypeError
        for candidate in self.scores or ():
            for value in candidate:
                math.isnan(value)  # a TypeError for anything but a number


class Predictions:
    """Predictions of one task as they are made.

    Attributes:
      found: by id of the example.
    """

    def __init__(self) -> None:
        """Begins with none."""
        self.found: dict[str, Prediction] = {}

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Keeps those of ids that have none yet."""
        for prediction in predictions:
            self.found.setdefault(prediction.id, prediction)


class PredictionFile(Predictions):
    """Predictions in a file: what is in it stays, however the program that wrote it ended."""

    def __init__(self, path: Path, task: str) -> None:
        """Opens or creates the file, and takes off a last line that was not written to its end.

        Raises:
          PredictionError: another program is writing to it, or it holds something else.
        """
        super().__init__()
        self._task = task
        path.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{path} is being written by another program: wait, or take another folder."

        def read(line: bytes, number: int) -> None:
            where = f"Line {number} of {str(path)!r}"
            prediction = Prediction.from_line(line, task, where)
            self.found[prediction.id] = prediction

        self._file = LineFile(path, read, PredictionError(busy))

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Writes those of ids that have none yet."""
        new = {p.id: p for p in predictions if p.id not in self.found}
        super().add(new.values())
        self._file.write("".join(f"{p.to_line(self._task)}\n" for p in new.values()))

    def close(self) -> None:
        """Brings it to the disk."""
        self._file.close()


def read_predictions(path: Path, task: str) -> list[Prediction]:
    """The predictions of a file, in its order, whoever wrote it.

    Raises:
      PredictionError: there is no such file, or a line is none, or one of another task.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PredictionError(f"There are no predictions {str(path)!r}: name another.") from None
    except UnicodeDecodeError:
        raise PredictionError(f"{str(path)!r} is not text in UTF-8: write it again.") from None
    return [
        Prediction.from_line(line, task, f"Line {number} of {str(path)!r}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


@dataclasses.dataclass(frozen=True)
class Answers:
    """An answer for every example of a task.

    Attributes:
      texts: in the order of the examples; see the module.
      problems: why an example can only be wrong, by its id.
    """

    texts: list[str]
    problems: dict[str, str]


def check_questions(
    questions: Mapping[str, str], predictions: Iterable[Prediction], task: str
) -> None:
    """Makes sure that predictions answer what is asked now.

    Args:
      questions: digests by id of the example; those of other ids are not known.
      predictions: of which those that note no question are taken on trust.
      task: named in errors.

    Raises:
      PredictionError: some answer other questions.
    """
    told = [(p.id, p.question) for p in predictions if p.question is not None]
    others = [identity for identity, digest in told if questions.get(identity, digest) != digest]
    _refuse(
        task,
        others,
        "whose questions have changed: its files, pictures or demonstrations were others then; put "
        "them back, or ask anew in another folder",
    )


def answers_of(ids: Sequence[str], predictions: Iterable[Prediction], task: str) -> Answers:
    """Finds the answer of every example; one without a prediction is wrong, and counted.

    Args:
      ids: of the examples, in order, no two of them the same.
      predictions: in any order.
      task: named in errors.

    Raises:
      PredictionError: there are two predictions of one id, or some of ids that the task lacks.
    """
    predictions = list(predictions)
    counts = collections.Counter(p.id for p in predictions)
    _refuse(task, [i for i, count in counts.items() if count > 1], "twice: leave one of each")
    known = set(ids)
    strange = [p.id for p in predictions if p.id not in known]
    _refuse(task, strange, "that it does not have: they are of another version or split")
    by_id = {p.id: p for p in predictions}
    missing: Any = Prediction("", error="missing")
    found = [by_id.get(identity, missing) for identity in ids]
    problems = {i: p.problem for i, p in zip(ids, found, strict=True) if p.problem is not None}
    return Answers([p.answer for p in found], problems)


def _refuse(task: str, ids: Sequence[str], what: str) -> None:
    if ids:
        some = ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
        raise PredictionError(f"The predictions of {task} have {len(ids)} ids ({some}) {what}.")
