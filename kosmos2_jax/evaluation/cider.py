"""CIDEr-D, the caption score of COCO (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726).

As in COCO's evaluation: n-grams up to 4 weighted by how rare they are among the references of all
pictures, counts clipped to those of a reference, a Gaussian penalty on the difference of lengths.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kosmos2_jax.evaluation.ngrams import MAX_N, NGram, Tokens, check_captions, count_ngrams

# Deviation of the penalty on lengths, and the factor of all scores (both of COCO's evaluation).
LENGTH_SIGMA = 6.0
SCALE = 10.0


class _Vector(NamedTuple):
    """A caption as weights of its n-grams, by n, with their norms and its length in bigrams."""

    weights: tuple[dict[NGram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider_d(references: Sequence[Sequence[Tokens]], predictions: Sequence[Tokens]) -> list[float]:
    """Returns CIDEr-D of each caption; papers report the mean over pictures times 100.

    With one picture all n-grams are equally common and every score is 0.

    Args:
      references: tokens of the true captions of each picture, at least one.
      predictions: tokens of the caption written for each picture; none scores 0.

    Returns:
      A score of 0..10 for each picture.

    Raises:
      ValueError: there are no pictures, not as many predictions as references, or a picture has
        no reference.
    """
    check_captions(references, predictions)
    counted = [[count_ngrams(reference) for reference in group] for group in references]
    rarity = _Rarity(counted)
    scores = []
    for group, prediction in zip(counted, predictions, strict=True):
        written = rarity.vector(count_ngrams(prediction))
        total = sum(_similarity(written, rarity.vector(counts)) for counts in group)
        scores.append(SCALE * total / len(group))
    return scores


class _Rarity:
    """How rare n-grams are: the logarithm of pictures to pictures with the n-gram."""

    def __init__(self, counted: Sequence[Sequence[Mapping[NGram, int]]]) -> None:
        self._pictures = collections.Counter(
            ngram for group in counted for ngram in set().union(*group)
        )
        self._log_total = math.log(len(counted))

    def vector(self, counts: Mapping[NGram, int]) -> _Vector:
        """Weighs the n-grams of a caption; one that no reference has counts as in one picture."""
        weights: tuple[dict[NGram, float], ...] = tuple({} for _ in range(MAX_N))
        for ngram, count in counts.items():
            rarity = self._log_total - math.log(max(1, self._pictures[ngram]))
            weights[len(ngram) - 1][ngram] = count * rarity
        norms = tuple(math.sqrt(sum(w * w for w in part.values())) for part in weights)
        bigrams = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Vector(weights, norms, bigrams)


def _similarity(written: _Vector, reference: _Vector) -> float:
    """The mean over n of the clipped cosine, times the penalty on the difference of lengths."""
    total = 0.0
    parts = zip(written.weights, reference.weights, written.norms, reference.norms, strict=True)
    for ours, theirs, our_norm, their_norm in parts:
        if our_norm and their_norm:
            shared = ((ours[ngram], theirs[ngram]) for ngram in ours if ngram in theirs)
            dot = sum(min(our, their) * their for our, their in shared)
            total += dot / (our_norm * their_norm)
    difference = written.length - reference.length
    return total / MAX_N * math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))
