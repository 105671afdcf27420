"""Scores of boxes: referring expression comprehension and phrase grounding.

Boxes may be normalised or in pixels, as long as all boxes of a picture agree: intersection over
union is the same (spec section 5.2: float coordinates, no added pixel). A reversed box or one
with NaN is a miss (trap T-18).
"""

from __future__ import annotations

from collections.abc import Sequence

from kosmos2_jax.evaluation.means import Figure
from kosmos2_jax.grounding.boxes import Box, iou
from kosmos2_jax.grounding.grounded_text import GroundedText

# A box this close to the true one is a hit (spec sections 5.2 and 5.3).
MIN_IOU = 0.5


def phrase_boxes(grounded: GroundedText, phrase: str) -> list[Box]:
    """Returns the boxes predicted for a phrase, in the order of the text.

    As in the official scripts a prediction counts for the phrase if its name is the same text
    (spec section 5.2, traps T-19 and T-20), white space at the ends aside.
    """
    wanted = phrase.strip()
    return [box for span in grounded.spans if span.text.strip() == wanted for box in span.boxes]


def rec_accuracy(targets: Sequence[Box], predictions: Sequence[Box | None]) -> Figure:
    """Returns the share of examples whose box is a hit (spec section 5.3), 0..1.

    Args:
      targets: the true box of each example.
      predictions: the first predicted box of each example; None, where there is none, is a miss.

    Raises:
      ValueError: there are no examples, or not as many predictions as targets.
    """
    _check_lengths(targets, predictions)
    return Figure(
        [
            prediction is not None and iou(target, prediction) >= MIN_IOU
            for target, prediction in zip(targets, predictions, strict=True)
        ]
    )


def recall_at_k(
    targets: Sequence[Sequence[Box]],
    predictions: Sequence[Sequence[Box]],
    ks: Sequence[int] = (1, 5, 10),
    merge_boxes: bool = False,
) -> dict[str, Figure]:
    """Returns the share of phrases found within the first k boxes (spec section 5.2).

    Args:
      targets: the true boxes of each phrase, at least one.
      predictions: the predicted boxes of each phrase, best first; none is a miss.
      ks: how many predictions may be used.
      merge_boxes: see `first_hits`.

    Returns:
      {"r1": .., "r5": .., "r10": ..}, each 0..1.

    Raises:
      ValueError: as `first_hits`.
    """
    ranks = first_hits(targets, predictions, merge_boxes)
    return {f"r{k}": Figure([rank < k for rank in ranks]) for k in ks}


def first_hits(
    targets: Sequence[Sequence[Box]],
    predictions: Sequence[Sequence[Box]],
    merge_boxes: bool = False,
) -> list[float]:
    """Returns which prediction is the first hit of each phrase: R@k counts those below k.

    Args:
      targets: the true boxes of each phrase, at least one.
      predictions: the predicted boxes of each phrase, best first; none is a miss.
      merge_boxes: False for ANY-BOX, where a prediction may hit any of the true boxes (what the
        paper's figures are); True for MERGED-BOXES, where it must hit the box around them all.

    Returns:
      Its index, counted from 0, for each phrase; infinity where none is a hit. The share of finite
      ones is the upper bound of the official report.

    Raises:
      ValueError: there are no phrases, not as many predictions as targets, or a phrase without
        a true box (the protocol leaves those out).
    """
    _check_lengths(targets, predictions)
    if not all(targets):
        first = next(i for i, boxes in enumerate(targets) if not boxes)
        raise ValueError(f"Phrase {first} has no true box: the protocol leaves such phrases out.")
    if merge_boxes:
        targets = [[_box_around(boxes)] for boxes in targets]
    return [_first_hit(*pair) for pair in zip(targets, predictions, strict=True)]


def _box_around(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def _first_hit(targets: Sequence[Box], predictions: Sequence[Box]) -> float:
    """Returns the index of the first prediction that hits a true box; infinity if none does."""
    hits = (
        rank
        for rank, prediction in enumerate(predictions)
        if any(iou(target, prediction) >= MIN_IOU for target in targets)
    )
    return next(hits, float("inf"))


def _check_lengths(targets: Sequence[object], predictions: Sequence[object]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"There are {len(targets)} targets but {len(predictions)} predictions.")
    if not targets:
        raise ValueError("There are no examples to score.")
