"""Means of scores: of groups of examples, and how sure a mean is."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    """Two values between which a figure would mostly lie, had other examples been drawn."""

    low: float
    high: float


class Figure(float):
    """A figure of many examples: a float that knows what it is made of.

    A product with a number is the figure of that share, as of all examples where the others of
    them count 0.

    Attributes:
      scores: [examples] or [examples, ...]: rows of which it is a statistic.
    """

    scores: np.ndarray

    def __new__(
        cls, scores: Sequence[Any] | np.ndarray, statistic: Statistic | None = None
    ) -> Figure:
        """A statistic of `scores`, their mean by default; at least one row."""
        return cls._make(np.asarray(scores), statistic, 1.0)

    @classmethod
    def _make(cls, scores: np.ndarray, statistic: Statistic | None, factor: float) -> Figure:
        value = math.fsum(scores) / len(scores) if statistic is None else statistic(scores)
        figure = super().__new__(cls, factor * value)
        figure.scores, figure._statistic, figure._factor = scores, statistic, factor
        return figure

    def __mul__(self, factor: float) -> Figure:
        """The figure of a share, or one in other units."""
        return self._make(self.scores, self._statistic, self._factor * factor)

    __rmul__ = __mul__

    def interval(self, resamples: int = 1000) -> Interval:
        """How sure it is, see `bootstrap_interval`; 95%."""
        found = bootstrap_interval(self.scores, self._statistic, resamples=resamples)
        return Interval(*(self._factor * end for end in found))


def means_by_group(
    scores: Sequence[float], groups: Sequence[Iterable[str]]
) -> dict[str, tuple[Figure, int]]:
    """Returns mean score and number of examples of each group, groups in order of their names.

    Args:
      scores: of each example.
      groups: names of the groups of each example; it counts in each (spec section 5.2: "a phrase
        with several types counts in each").

    Raises:
      ValueError: there are not as many groups as scores.
    """
    members: dict[str, list[float]] = collections.defaultdict(list)
    for score, names in zip(scores, groups, strict=True):
        for name in names:
            members[name].append(score)
    return {name: (Figure(m), len(m)) for name, m in sorted(members.items())}


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Statistic | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the percentile bootstrap interval of a figure (Efron 1979).

    Args:
      values: [examples] or [examples, ...], what the figure is made of.
      statistic: the figure of resampled rows of `values`; their mean by default. Where it is NaN,
        as rows that were drawn have no figure, they are left out.
      resamples: how often as many examples are drawn again, with replacement.
      confidence: share of the resampled figures within the interval.
      seed: the same seed gives the same interval.

    Raises:
      ValueError: there are no values, one is not a finite number, or `confidence` is not within
        0..1.
    """
    rows = np.asarray(values)
    if not len(rows):
        raise ValueError("There are no scores to take an interval of.")
    if not np.isfinite(rows).all():
        raise ValueError(f"Score {np.argwhere(~np.isfinite(rows))[0][0]} is not a finite number.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"A confidence of {confidence} is not between 0 and 1.")
    rng = np.random.default_rng(seed)
    figures = np.empty(resamples)
    for number in range(resamples):
        drawn = rows[rng.integers(len(rows), size=len(rows))]
        figures[number] = drawn.mean() if statistic is None else statistic(drawn)
    tail = (1.0 - confidence) / 2
    low, high = np.nanquantile(figures, (tail, 1.0 - tail))
    return Interval(float(low), float(high))
