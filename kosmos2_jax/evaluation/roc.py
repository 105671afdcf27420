"""Area under the ROC curve, the score of HatefulMemes (spec section 5.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.evaluation.means import Figure


def roc_auc(labels: Sequence[bool | int], scores: Sequence[float]) -> Figure:
    """Returns how probably a true example has a higher score than a false one; ties count half.

    Args:
      labels: whether each example is true.
      scores: of each example, any real numbers; only their order matters.

    Raises:
      ValueError: not as many scores as labels, a score is NaN, a label is not 0 or 1, or all
        examples have the same label.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape:
        raise ValueError(f"There are {len(truth)} labels but {len(values)} scores.")
    if np.isnan(values).any():
        raise ValueError(f"The score of example {np.isnan(values).argmax()} is NaN.")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("Labels must be 0 or 1.")
    if not 0 < truth.sum() < len(truth):
        raise ValueError("ROC-AUC needs both true and false examples.")
    # Only the order matters, and places in it are finite.
    order = np.unique(values, return_inverse=True)[1]
    return Figure(np.stack([truth, order], axis=1), _area)


def _area(rows: np.ndarray) -> float:
    """Of labels and scores, [examples, 2]; NaN where all labels are the same."""
    truth, values = rows[:, 0], rows[:, 1]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    # Rank of each value, 1 for the lowest; equal values share the mean of their ranks.
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    wins = ranks[truth.astype(bool)].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))
