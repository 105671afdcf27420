"""Which of several candidates a model holds most probable (spec sections 5.6 to 5.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kosmos2_jax.evaluation.means import Figure

# The mean of the log probabilities of an answer's tokens, or their sum. SEED-Bench takes the mean
# (spec section 5.7); what the papers took for the language tasks is not published.
MEAN = "mean"
SUM = "sum"


def candidate_score(log_probs: Sequence[float], normalization: str = MEAN) -> float:
    """Returns the score of a candidate from the natural log probabilities of its tokens.

    Args:
      log_probs: of the tokens of the answer alone, neither prompt nor end of sentence; -inf is
        an impossible token.
      normalization: "mean" over tokens, or "sum".

    Raises:
      ValueError: there are no tokens, one is NaN or above 0, or there is no such normalization.
    """
    if normalization not in (MEAN, SUM):
        raise ValueError(f"There is no normalization {normalization!r}: use 'mean' or 'sum'.")
    if not len(log_probs):
        raise ValueError("A candidate without tokens has no score.")
    for place, value in enumerate(log_probs):
        if not value <= 0.0:
            raise ValueError(
                f"Token {place} has the log probability {value}: it must be 0 or less."
            )
    total = math.fsum(log_probs) if math.isfinite(min(log_probs)) else -math.inf
    return total / len(log_probs) if normalization == MEAN else total


def best_candidate(candidates: Sequence[Sequence[float]], normalization: str = MEAN) -> int:
    """Returns the index of the candidate with the highest `candidate_score`, the first of equals.

    Args:
      candidates: log probabilities of each candidate's tokens.
      normalization: "mean" or "sum".

    Raises:
      ValueError: there are no candidates, or as `candidate_score`.
    """
    scores = [candidate_score(log_probs, normalization) for log_probs in candidates]
    if not scores:
        raise ValueError("There are no candidates to choose from.")
    return scores.index(max(scores))


def choice_accuracy(targets: Sequence[int], choices: Sequence[int]) -> Figure:
    """Returns the share of examples where the right candidate was chosen, 0..1.

    Raises:
      ValueError: there are no examples, or not as many choices as targets.
    """
    if len(targets) != len(choices):
        raise ValueError(f"There are {len(targets)} targets but {len(choices)} choices.")
    if not targets:
        raise ValueError("There are no examples to score.")
    return Figure([t == c for t, c in zip(targets, choices, strict=True)])
