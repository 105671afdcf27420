"""ROUGE-L of captions (Lin 2004), as COCO's evaluation computes it."""

from __future__ import annotations

from collections.abc import Sequence

from kosmos2_jax.evaluation.ngrams import Tokens, check_captions

# How much more recall counts than precision (COCO's evaluation).
BETA = 1.2


def rouge_l(references: Sequence[Sequence[Tokens]], predictions: Sequence[Tokens]) -> list[float]:
    """Returns ROUGE-L of each caption: F of the longest common subsequence, 0..1.

    The best precision and the best recall may come from different references.

    Args:
      references: tokens of the true captions of each picture, at least one.
      predictions: tokens of the caption written for each picture; none scores 0.

    Raises:
      ValueError: there are no pictures, not as many predictions as references, or a picture has
        no reference.
    """
    check_captions(references, predictions)
    return [_score(*pair) for pair in zip(references, predictions, strict=True)]


def _score(references: Sequence[Tokens], written: Tokens) -> float:
    if not written:
        return 0.0
    common = [_longest_common_subsequence(reference, written) for reference in references]
    precision = max(common) / len(written)
    recall = max(
        length / max(len(reference), 1)
        for length, reference in zip(common, references, strict=True)
    )
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    lengths = [0] * (len(b) + 1)
    for token in a:
        before = 0  # the length without this token of a and of b
        for place, other in enumerate(b, 1):
            here = lengths[place]
            lengths[place] = before + 1 if token == other else max(here, lengths[place - 1])
            before = here
    return lengths[-1]
