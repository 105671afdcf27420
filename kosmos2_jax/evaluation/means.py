"""Means of scores: of groups of examples, and how sure a mean is."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Two values between which a figure would mostly lie, had other examples been drawn."""

    low: float
    high: float


def means_by_group(
    scores: Sequence[float], groups: Sequence[Iterable[str]]
) -> dict[str, tuple[float, int]]:
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
    return {name: (sum(m) / len(m), len(m)) for name, m in sorted(members.items())}


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the percentile bootstrap interval of a figure (Efron 1979).

    Args:
      values: [examples] or [examples, ...], what the figure is made of.
      statistic: the figure of resampled rows of `values`; their mean by default.
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
    low, high = np.quantile(figures, (tail, 1.0 - tail))
    return Interval(float(low), float(high))
