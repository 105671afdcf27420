"""BLEU-1 to BLEU-4 of captions (Papineni et al. 2002), as COCO's evaluation computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.evaluation.ngrams import MAX_N, Tokens, check_captions, count_ngrams

# COCO's evaluation keeps its fractions from 0 / 0 so.
_SMALL, _TINY = 1e-9, 1e-15


def bleu_counts(
    references: Sequence[Sequence[Tokens]], predictions: Sequence[Tokens]
) -> np.ndarray:
    """Returns what BLEU is made of, for each caption; `bleu` of any rows is their score.

    Args:
      references: tokens of the true captions of each picture, at least one.
      predictions: tokens of the caption written for each picture.

    Returns:
      int64 [pictures, 10]: correct n-grams for n = 1..4, written n-grams for n = 1..4, length of
      the caption, length of the reference closest to it (the shorter one of two).

    Raises:
      ValueError: there are no pictures, not as many predictions as references, or a picture has
        no reference.
    """
    check_captions(references, predictions)
    return np.array(
        [_counts(group, written) for group, written in zip(references, predictions, strict=True)]
    )


def bleu(counts: np.ndarray) -> tuple[float, ...]:
    """Returns BLEU-1 to BLEU-4 of a set of captions, 0..1, from their `bleu_counts`."""
    totals = counts.sum(axis=0).tolist()
    correct, guesses = totals[:MAX_N], totals[MAX_N : 2 * MAX_N]
    written, reference = totals[-2:]
    ratio = (written + _TINY) / (reference + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_N):
        product *= (correct[n] + _TINY) / (guesses[n] + _SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return tuple(scores)


def _counts(references: Sequence[Tokens], written: Tokens) -> list[int]:
    most = count_ngrams(())
    for reference in references:
        most |= count_ngrams(reference)
    correct = [0] * MAX_N
    for ngram, count in (count_ngrams(written) & most).items():
        correct[len(ngram) - 1] += count
    guesses = [max(0, len(written) - n) for n in range(MAX_N)]
    closest = min((abs(len(r) - len(written)), len(r)) for r in references)[1]
    return [*correct, *guesses, len(written), closest]
