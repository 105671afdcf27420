"""Candidates of examples, scored by the model over all devices and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import NamedSharding

from kosmos2_jax.data.choices import CandidateRow
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.prompt_batch import TEXT_SLOT, Prompt
from kosmos2_jax.inference.scoring import Spread, score_continuations
from kosmos2_jax.training.processes import DataShard, gather, global_batch, host_values

# Fills a batch up.
_FILLER = CandidateRow([Kosmos2Vocabulary.bos_id], [TEXT_SLOT], [], [[Kosmos2Vocabulary.eos_id]])


class Asked(NamedTuple):
    """An example whose candidates are to be scored.

    Attributes:
      rows: its candidates.
      images: its pictures, uint8 [N, S, S, 3]; there may be more than it has.
      rationale: what the model wrote first.
      place: where that goes in each row's prompt.
    """

    rows: Sequence[CandidateRow]
    images: np.ndarray
    rationale: Sequence[int] = ()
    place: int = 0


class CandidateScoring:
    """Scores candidates; all processes call it together, each with examples of its own."""

    def __init__(
        self, model: Kosmos2Model, rows: NamedSharding, batch_size: int, shard: DataShard
    ) -> None:
        """Computes nothing but which rows are whose.

        Args:
          model: scores.
          rows: sharding of a batch.
          batch_size: rows of a batch, over all processes.
          shard: which of them are this process's.
        """
        self._model, self._size = model, batch_size // shard.count
        first = shard.number * self._size
        own = np.arange(first, first + self._size, dtype=np.int32)

        def place(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
            return global_batch(arrays, rows)

        order = np.argsort(host_values(place({"own": own})["own"]))[own]
        self._spread = Spread(
            agree=lambda numbers: [max(each) for each in zip(*gather(numbers), strict=True)],
            place=place,
            fetch=lambda values: host_values(values)[order],
        )

    def __call__(self, params: Any, asked: Sequence[Asked]) -> list[list[list[float]]]:
        """Log probability of each token of each candidate of each example, in nats.

        Raises:
          MarkupError: a candidate is too long with its prompt.
        """
        rows = [(example, row) for example in asked for row in example.rows]
        (batches,) = self._spread.agree([-(-len(rows) // self._size)])
        found: list[list[np.ndarray]] = []
        for number in range(batches):
            own = rows[number * self._size : (number + 1) * self._size]
            found += self._score(params, own)[: len(own)]
        answers = iter([scores.tolist() for row in found for scores in row])
        return [[next(answers) for row in example.rows for _ in row.answers] for example in asked]

    def _score(
        self, params: Any, rows: Sequence[tuple[Asked, CandidateRow]]
    ) -> list[list[np.ndarray]]:
        prompts = [_prompt(example, row) for example, row in rows]
        answers = [row.answers for _, row in rows]
        missing = self._size - len(rows)
        prompts += [_prompt(Asked([], np.zeros(0)), _FILLER)] * missing
        answers += [_FILLER.answers] * missing
        return score_continuations(self._model.config, params, prompts, answers, self._spread)


def _prompt(example: Asked, row: CandidateRow) -> Prompt:
    at, written = example.place, list(example.rationale)
    ids = [*row.ids[:at], *written, *row.ids[at:]]
    slots = [*row.image_slots[:at], *[TEXT_SLOT] * len(written), *row.image_slots[at:]]
    images = tuple(example.images[picture] for picture in row.pictures)
    return Prompt(np.array(ids, np.int32), np.array(slots, np.int32), images)


def most_likely(rows: Sequence[CandidateRow], scores: Sequence[Sequence[float]]) -> list[int]:
    """The tokens of the candidate that is most likely as a whole."""
    answers = [answer for row in rows for answer in row.answers]
    return answers[max(range(len(answers)), key=lambda number: sum(scores[number]))]
