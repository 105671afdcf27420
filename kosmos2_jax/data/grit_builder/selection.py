"""Which of the boxes that a detector found are kept, and what they are of (spec section 6)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.data.grit_builder.detectors import Detections
from kosmos2_jax.data.grit_builder.phrases import Phrase
from kosmos2_jax.data.skips import CLIPPED, FILTERED
from kosmos2_jax.grounding.boxes import iou
from kosmos2_jax.ranges import SHARE, check_ranges

Annotation = list[float]  # [start, end, x1, y1, x2, y2, score]
Counts = collections.Counter[str]

BELOW = f"{FILTERED}box below the score threshold"
OVERLAPS = f"{FILTERED}box overlaps a better one"
CONTAINED = f"{FILTERED}expression is contained in another one"
BAD_BOX = f"{CLIPPED}box of the detector is no box"


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """What is chosen.

    Attributes:
      score_threshold: a box must score more; spec section 6.
      nms_iou: of boxes that overlap more than this, also of different phrases, the best stays.
        The paper's is not published: 0.7 leaves a shirt beside its wearer.
      keep_contained: whether expressions within others are kept, as the released files have them;
        the paper drops them (spec section 6), and so does whatever trains on them (section 4.3).
    """

    score_threshold: float = 0.65
    nms_iou: float = 0.7
    keep_contained: bool = False

    def __post_init__(self) -> None:
        check_ranges({"score_threshold": SHARE, "nms_iou": SHARE}, vars(self))


def above_threshold(found: Detections, threshold: float, counts: Counts) -> Detections:
    """Keeps well-formed boxes of a score above `threshold`, clipped to the picture."""
    clipped = np.clip(found.boxes, 0.0, 1.0)
    good = (clipped[:, 0] < clipped[:, 2]) & (clipped[:, 1] < clipped[:, 3])
    good &= np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
    scored = good & (found.scores > threshold)
    _count(counts, BAD_BOX, int((~good).sum()))
    _count(counts, BELOW, int((good & ~scored).sum()))
    return Detections(clipped[scored], found.scores[scored], found.phrase_ids[scored])


def suppress(found: Detections, max_iou: float, counts: Counts) -> Detections:
    """Non-maximum suppression across all phrases; what is left is sorted, the best box first."""
    kept: list[int] = []
    for index in np.argsort(-found.scores, kind="stable"):
        if all(iou(found.boxes[index], found.boxes[other]) <= max_iou for other in kept):
            kept.append(int(index))
    _count(counts, OVERLAPS, len(found.scores) - len(kept))
    return Detections(found.boxes[kept], found.scores[kept], found.phrase_ids[kept])


def noun_chunks(found: Detections, phrases: Sequence[Phrase]) -> list[Annotation]:
    """Annotations of the chunks, in the order of the boxes."""
    return [_annotation(phrase.span, *rest) for phrase, *rest in _boxed(found, phrases)]


def expressions(
    found: Detections, phrases: Sequence[Phrase], keep_contained: bool, counts: Counts
) -> list[Annotation]:
    """Annotations of the expressions that chunks with boxes are expanded to, in the same order.

    Unless `keep_contained`, those are left out that lie within another one that has a box.
    """
    spans = {phrases[i].expression for i in found.phrase_ids}
    outer = {a for a in spans if not any(_contains(b, a) for b in spans)}
    annotations = []
    for phrase, box, score in _boxed(found, phrases):
        if keep_contained or phrase.expression in outer:
            annotations.append(_annotation(phrase.expression, box, score))
        else:
            _count(counts, CONTAINED, 1)
    return annotations


def _boxed(found: Detections, phrases: Sequence[Phrase]) -> list[tuple[Phrase, np.ndarray, float]]:
    chosen = [phrases[i] for i in found.phrase_ids]
    return list(zip(chosen, found.boxes, found.scores, strict=True))


def _annotation(span: tuple[int, int], box: np.ndarray, score: float) -> Annotation:
    return [*span, *map(float, box), float(score)]


def _contains(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]


def _count(counts: Counts, reason: str, number: int) -> None:
    if number:
        counts[reason] += number
