"""Figures of many batches: lengths, boxes, pictures, fullness, and shares of the tasks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

_BINS = 10


@dataclasses.dataclass
class TaskFigures:
    """What was counted of a task.

    Attributes:
      examples: how many.
      tokens: places they take.
      learnt: tokens with a loss weight above 0.
      boxes: pairs of location tokens.
      pictures: how many.
    """

    examples: int = 0
    tokens: int = 0
    learnt: int = 0
    boxes: int = 0
    pictures: int = 0


class BatchStatistics:
    """Counts over batches.

    Attributes:
      tasks: figures by name of task.
      lengths: places that each example takes, slots of pictures included.
      boxes: of each example.
      pictures: of each row.
      filled: places of each row that hold tokens.
      row_length: places a row has; 0 before the first batch.
    """

    def __init__(self, vocabulary: Kosmos2Vocabulary, num_latents: int) -> None:
        """Begins with nothing.

        Args:
          vocabulary: of the tokens.
          num_latents: slots a picture takes.
        """
        self.tasks: dict[str, TaskFigures] = collections.defaultdict(TaskFigures)
        self.lengths: list[int] = []
        self.boxes: list[int] = []
        self.pictures: list[int] = []
        self.filled: list[int] = []
        self.row_length = 0
        self._vocabulary = vocabulary
        self._num_latents = num_latents

    def add(self, batch: Mapping[str, np.ndarray], tasks: Sequence[Sequence[str]]) -> None:
        """Counts the rows of a batch.

        Args:
          batch: as in `kosmos2_jax.evaluation.inspection.inspect_row`.
          tasks: for each row the tasks of its examples, by segment.
        """
        self.row_length = batch["tokens"].shape[1]
        for index, names in enumerate(tasks):
            self._add_row({name: values[index] for name, values in batch.items()}, names)

    def _add_row(self, row: Mapping[str, np.ndarray], tasks: Sequence[str]) -> None:
        def count(marked: np.ndarray) -> list[int]:
            segments = row["segment_ids"][marked]
            return np.bincount(segments, minlength=len(tasks) + 1)[1:].tolist()

        slots = row["image_slots"]
        lengths = count(row["segment_ids"] > 0)
        learnt = count(row["loss_weights"] > 0)
        boxes = [places // 2 for places in count(self._vocabulary.is_location(row["targets"]))]
        pictures = count((slots >= 0) & (slots % self._num_latents == 0))
        self.lengths += lengths
        self.boxes += boxes
        self.pictures.append(sum(pictures))
        self.filled.append(sum(lengths))
        columns = zip(tasks, lengths, learnt, boxes, pictures, strict=True)
        for name, its_tokens, its_learnt, its_boxes, its_pictures in columns:
            task = self.tasks[name]
            task.examples += 1
            task.tokens += its_tokens
            task.learnt += its_learnt
            task.boxes += its_boxes
            task.pictures += its_pictures


class Bin(NamedTuple):
    """A bar of a histogram: values from `low` to `high`, both included, and how many there are."""

    low: int
    high: int
    count: int


def histogram(values: Iterable[int], most: int = _BINS) -> list[Bin]:
    """Counts whole numbers in bins of one round width: 1, 2, 5, 10, 20, 50 and so on.

    Args:
      values: at least one.
      most: bins at most, but for one more where they do not begin at a multiple of the width; the
        last one ends with the greatest value.
    """
    counts = collections.Counter(values)
    low, high = min(counts), max(counts)
    width = next(w for w in _round_widths() if w * most > high - low)
    first = low // width * width
    return [
        Bin(
            start, min(start + width - 1, high), sum(counts[v] for v in range(start, start + width))
        )
        for start in range(first, high + 1, width)
    ]


def _round_widths() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
