"""What caption scores share: tokens, n-grams, and captions that can be scored at all."""

from __future__ import annotations

import collections
from collections.abc import Sequence

Tokens = Sequence[str]
NGram = tuple[str, ...]

# COCO's evaluation counts n-grams of 1 to 4 tokens.
MAX_N = 4


def count_ngrams(tokens: Tokens) -> collections.Counter[NGram]:
    """Returns how often each n-gram of 1 to `MAX_N` tokens occurs."""
    return collections.Counter(
        tuple(tokens[start : start + n])
        for n in range(1, MAX_N + 1)
        for start in range(len(tokens) - n + 1)
    )


def check_captions(references: Sequence[Sequence[object]], predictions: Sequence[object]) -> None:
    """Checks that every picture has a caption and something to compare it with.

    Raises:
      ValueError: there are no pictures, not as many predictions as references, or a picture has
        no reference.
    """
    if len(references) != len(predictions):
        raise ValueError(f"There are {len(references)} pictures but {len(predictions)} captions.")
    if not references:
        raise ValueError("There are no captions to score.")
    for number, group in enumerate(references):
        if not group:
            raise ValueError(f"Picture {number} has no reference caption.")
