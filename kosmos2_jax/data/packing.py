"""Packing: many examples with their pictures in one row of fixed shape.

First-fit over a bounded number of open rows, with two budgets: tokens and pictures. seqio's own
packer cannot do this: it refuses pictures, and it takes an id of 0 and a weight of 0 for padding.
Pure NumPy; what a picture is does not matter here, so that it can stay encoded, or be a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kosmos2_jax.ranges import COUNT, Range, check_ranges

TEXT_SLOT = -1  # in image_slots: this place holds text

# Why an example comes into no row; `Packer.counts` counts in this order, after what is packed.
SKIP_REASONS = ("longer than a row", "more pictures than a row holds", "nothing to learn")

# Features of a row that have one value for each of its L places.
SEQUENCES = {
    "tokens": np.int32,
    "targets": np.int32,
    "loss_weights": np.float32,
    "positions": np.int32,
    "segment_ids": np.int32,
    "image_slots": np.int32,
}

# An encoded example, see `kosmos2_jax.data.examples.encode_example`: targets int32 [n],
# loss_weights float32 [n], image_slots int32 [n], images: a sequence of pictures; and, if it has
# one, its note, which is only handed on.
Example = Mapping[str, Any]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RowLimits:
    """What a row holds.

    Attributes:
      length: L, tokens of a row (2,048 in the papers, spec section 0).
      images: N, pictures of a row.
      pad_id: id at places that hold nothing; they have no weight and segment 0 (spec section 0).
      open_rows: rows that wait for examples at a time. Measured on captions, text and interleaved
        pages like the papers': 2 rows are filled to 98.0%, 16 to 98.6%, 64 to 98.6%.
      slack: a row with this many free places or fewer waits no longer.
    """

    length: int
    images: int
    pad_id: int = 1
    open_rows: int = 4
    slack: int = 16

    def __post_init__(self) -> None:
        ranges = {
            "length": COUNT,
            "images": Range(least=0),
            "open_rows": COUNT,
            "slack": Range(least=0),
        }
        check_ranges(ranges, vars(self))


class Packer:
    """Fills rows, each example going into the oldest open row that has room for it.

    A row leaves when it is full but for `RowLimits.slack`; where an example needs a new row and
    as many are open as may be, the oldest leaves. What comes out follows from what went in alone.

    Attributes:
      limits: of a row.
      open: examples of the open rows, oldest first. Together with `counts` it is the whole state.
      counts: int64 [1 + len(SKIP_REASONS)]: examples packed, then those skipped by reason.
    """

    def __init__(
        self,
        limits: RowLimits,
        open: Iterable[Sequence[Example]] = (),
        counts: np.ndarray | None = None,
    ) -> None:
        """Begins with no rows, or where another packer was."""
        self.limits = limits
        self.open = [list(examples) for examples in open]
        self.counts = np.zeros(1 + len(SKIP_REASONS), np.int64) if counts is None else counts.copy()
        self._room = [self._room_left(examples) for examples in self.open]

    def add(self, example: Example) -> list[Row]:
        """Puts an example into a row, or skips and counts it: it is never cut.

        Returns:
          Rows that leave, at most two; see `make_row`.

        Raises:
          ValueError: image_slots and images contradict each other, a defect of the task.
        """
        _check(example)
        need = _need(example)
        if (reason := self._skip_reason(example, need)) is not None:
            self.counts[1 + reason] += 1
            return []
        self.counts[0] += 1
        left = []
        fits = (need[0] <= room[0] and need[1] <= room[1] for room in self._room)
        index = next((i for i, fit in enumerate(fits) if fit), None)
        if index is None:
            if len(self.open) == self.limits.open_rows:
                left.append(self._close(0))
            index = len(self.open)
            self.open.append([])
            self._room.append((self.limits.length, self.limits.images))
        self.open[index].append(example)
        tokens, images = self._room[index]
        self._room[index] = (tokens - need[0], images - need[1])
        if self._room[index][0] <= self.limits.slack:
            left.append(self._close(index))
        return left

    def flush(self) -> list[Row]:
        """Lets all rows go, full or not: the data end here."""
        return [self._close(0) for _ in range(len(self.open))]

    def _close(self, index: int) -> Row:
        del self._room[index]
        return make_row(self.open.pop(index), self.limits)

    def _room_left(self, examples: Sequence[Example]) -> tuple[int, int]:
        needs = [_need(example) for example in examples]
        return (
            self.limits.length - sum(tokens for tokens, _ in needs),
            self.limits.images - sum(images for _, images in needs),
        )

    def _skip_reason(self, example: Example, need: tuple[int, int]) -> int | None:
        if need[0] > self.limits.length:
            return 0
        if need[1] > self.limits.images:
            return 1
        return None if example["loss_weights"][1:].any() else 2


def pack(examples: Iterable[Example], limits: RowLimits) -> Iterator[Row]:
    """Rows of all examples, the last ones as full as they come; see `make_row`."""
    packer = Packer(limits)
    for example in examples:
        yield from packer.add(example)
    yield from packer.flush()


def make_row(examples: Sequence[Example], limits: RowLimits) -> Row:
    """Lays examples one behind the other; they must fit.

    Inputs and targets are shifted by one within each example, so that no example predicts the
    next one's first token.

    Returns:
      tokens, targets int32 [L]: inputs and what follows each of them, pad ids behind the last.
      loss_weights float32 [L]: weight of predicting `targets`.
      positions int32 [L]: place within the example, from 0.
      segment_ids int32 [L]: number of the example from 1, 0 for padding.
      image_slots int32 [L]: place in `images` * num_latents + slot, -1 at text.
      images: list of the pictures in reading order.
      image_segments int32 [N]: segment each picture belongs to, 0 where there is none.
      notes: list of what the examples have as "note", b"" where they have none.
    """
    length = limits.length
    fillers = {"tokens": limits.pad_id, "targets": limits.pad_id, "image_slots": TEXT_SLOT}
    row: Row = {n: np.full(length, fillers.get(n, 0), dtype) for n, dtype in SEQUENCES.items()}
    row |= {"images": [], "image_segments": np.zeros(limits.images, np.int32)}
    row["notes"] = [example.get("note", b"") for example in examples]
    start = first_slot = 0
    for segment, example in enumerate(examples, start=1):
        size = len(example["targets"]) - 1
        here = slice(start, start + size)
        row["tokens"][here] = example["targets"][:-1]
        row["targets"][here] = example["targets"][1:]
        row["loss_weights"][here] = example["loss_weights"][1:]
        row["positions"][here] = np.arange(size)
        row["segment_ids"][here] = segment
        pictures = len(example["images"])
        if pictures:
            slots = example["image_slots"]
            row["image_slots"][here] = slots[:-1]
            row["image_slots"][here][slots[:-1] >= 0] += first_slot
            first_slot += int(slots.max()) + 1
            first = len(row["images"])
            row["image_segments"][first : first + pictures] = segment
            row["images"].extend(example["images"])
        start += size
    return row


def _check(example: Example) -> None:
    lengths = {len(example[name]) for name in ("targets", "loss_weights", "image_slots")}
    slots = int(example["image_slots"].max(initial=TEXT_SLOT)) + 1
    pictures = len(example["images"])
    if len(lengths) > 1 or (slots % pictures or not slots if pictures else slots):
        raise ValueError(
            f"an example has sequences of lengths {sorted(lengths)}, {pictures} pictures and "
            f"{slots} slots for them"
        )


def _need(example: Example) -> tuple[int, int]:
    """Places and pictures an example takes of a row."""
    return len(example["targets"]) - 1, len(example["images"])
