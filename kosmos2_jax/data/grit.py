"""From GRIT's annotations to a caption whose phrases point at boxes (spec section 4.3).

An annotation is `[start, end, x1, y1, x2, y2, score]`: characters of the caption, half-open, and
a box in fractions of the original picture. What is malformed is left out and counted; what the
recipe leaves out is counted as filtered.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import NamedTuple

from kosmos2_jax.data.skips import CLIPPED, FILTERED
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span, sorted_spans
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.ranges import COUNT, SHARE, check_ranges
from kosmos2_jax.vision.preprocessing import MIN_VISIBLE, crop_box

EXPRESSION, PHRASE = "expression", "phrase"
CROP, SQUARE = "crop", "square"

# Which annotations of a grounded document each phrase mode reads (spec section 4.3).
ANNOTATIONS = {EXPRESSION: "ref_exps", PHRASE: "noun_chunks"}

Counts = collections.Counter[str]

_NUMBERS = frozenset((int, float))


@dataclasses.dataclass(frozen=True)
class GritConfig:
    """What is chosen from GRIT's annotations.

    Attributes:
      score_threshold: boxes of a lower score are left out; spec 4.3 step 1, spec 6.
      phrase_mode: "expression" reads `ref_exps` and leaves out what lies within another one,
        "phrase" reads all `noun_chunks`; spec 4.3 step 3, `train.sh` has "expression".
      image_mode: "crop" for pictures of `crop_pixels`, as the released training, "square" for
        those of `square_pixels`, as all of inference; spec 4.3, trap T-23.
      image_size: pixels a side of the crop; spec 0.
      min_visible: share of a box's area that must be in the picture and in the crop; spec 4.3
        step 2.
      grounding_probability: chance that a caption with boxes shows them; spec 4.3 step 5,
        `train.sh` has 0.5.
    """

    score_threshold: float = 0.65
    phrase_mode: str = EXPRESSION
    image_mode: str = CROP
    image_size: int = 224
    min_visible: float = MIN_VISIBLE
    grounding_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.phrase_mode not in ANNOTATIONS:
            raise ConfigError(
                f"There is no phrase mode {self.phrase_mode!r}: use 'expression' or 'phrase'."
            )
        if self.image_mode not in (CROP, SQUARE):
            raise ConfigError(
                f"There is no image mode {self.image_mode!r}: use 'crop' or 'square'."
            )
        check_ranges({"image_size": COUNT, "grounding_probability": SHARE}, vars(self))


class Annotation(NamedTuple):
    """A well-formed annotation; its box may still reach out of the picture a little."""

    start: int
    end: int
    box: Box
    score: float


@dataclasses.dataclass(frozen=True)
class Grounding:
    """A caption with the phrases that are chosen, and what became of its annotations.

    Attributes:
      caption: phrases in order of the text, none overlapping; their boxes, in order of the
        annotations, are normalised to what is seen of the picture.
      kept: how many annotations have their box in `caption`.
      reasons: how many were left out or clipped, by reason; prefixes as in
        `kosmos2_jax.data.skips.Skips`.
    """

    caption: GroundedText
    kept: int
    reasons: Counts


def choose(
    caption: str, annotations: object, size: tuple[int, int], config: GritConfig
) -> Grounding:
    """Chooses the phrases and boxes of a caption (spec section 4.3, steps 1 to 4).

    Phrases that overlap otherwise than one within another get malformed tags from the released
    loader (trap T-32). Here the first in order of the text stays, of several that begin together
    the longest, and the others are dropped.

    Args:
      caption: the text that offsets count in.
      annotations: the list that `ANNOTATIONS` names; anything else in it or instead of it counts
        as malformed.
      size: width and height in pixels of the picture that will be cropped, both at least 1.
      config: what to choose.
    """
    reasons = Counts()
    found: list[Annotation] = []
    for raw in annotations if isinstance(annotations, list) else [annotations]:
        annotation = read_annotation(raw, caption, config.min_visible)
        if isinstance(annotation, str):
            reasons[annotation] += 1
        else:
            found.append(annotation)
    found = _place_boxes(found, size, config, reasons)
    spans = _group(found, caption)
    if config.phrase_mode == EXPRESSION:
        spans = _drop_contained(spans, reasons)
    spans = _drop_overlapping(spans, reasons)
    return Grounding(GroundedText(caption, tuple(spans)), _num_boxes(spans), reasons)


def read_annotation(
    raw: object, caption: str, min_visible: float = MIN_VISIBLE
) -> Annotation | str:
    """Returns an annotation, or the reason why it is malformed.

    Offsets may be floats of whole value, as downloaders leave them (spec section 6). A box may
    reach out of the picture as long as `min_visible` of its area is within.
    """
    if not isinstance(raw, list | tuple) or len(raw) != 7:
        return "annotation is not a list of seven numbers"
    if not _NUMBERS.issuperset(map(type, raw)):  # a bool is an int too, but no number
        return "annotation is not a list of seven numbers"
    start, end, *corners, score = raw
    if not (_is_whole(start) and _is_whole(end)):
        return "offset is not a whole number"
    if not (0 <= start <= len(caption) and 0 <= end <= len(caption)):
        return "offset is outside the caption"
    if start > end:
        return "offsets are swapped"
    start, end = int(start), int(end)
    phrase = caption[start:end]
    if not phrase or phrase.isspace():
        return "phrase is empty"
    if not (all(map(_is_finite, corners)) and _is_finite(score)):
        return "coordinate or score is not a finite number"
    box = Box(*map(float, corners))
    if not (box.x1 < box.x2 and box.y1 < box.y2):
        return "box is reversed or without area"
    if _inside(box, min_visible) is None:
        return "box is outside the picture"
    return Annotation(start, end, box, float(score))


def fit_to_tokens(
    caption: GroundedText, vocabulary: Kosmos2Vocabulary
) -> tuple[GroundedText, Counts]:
    """Returns the caption without the phrases that its tokens cannot show, and their counts.

    The released loader loses a phrase that has the same tokens as another one, writes half the
    tags of one that has some of them (trap T-32), and tags other words than those of a phrase
    that ends well inside a token. Here all these are dropped; of several that share tokens the
    first in order of the text stays. What is returned can be encoded by
    `Kosmos2Vocabulary.encode_grounded`.

    Raises:
      MarkupError: a phrase begins inside a token, for which the released loader discards the
        caption (spec section 4.3).
    """
    ids = vocabulary.encode(caption.text)
    reasons = Counts()
    spans = []
    cursor = 0
    for span in sorted_spans(caption):
        start, end = vocabulary.token_range(caption.text, span)
        # As at its beginning, the last token may differ, as where the phrase ends in a word.
        if vocabulary.encode(caption.text[: span.end])[:-1] != ids[: max(end - 1, 0)]:
            reasons["phrase ends inside a token"] += len(span.boxes)
        elif not cursor <= start < end <= len(ids):
            reasons[f"{FILTERED}phrase has no tokens of its own"] += len(span.boxes)
        else:
            spans.append(span)
            cursor = end
    return dataclasses.replace(caption, spans=tuple(spans)), reasons


def _place_boxes(
    annotations: list[Annotation], size: tuple[int, int], config: GritConfig, reasons: Counts
) -> list[Annotation]:
    """Keeps boxes of enough score and sight, normalised to what is seen of the picture."""
    placed = []
    for annotation in annotations:
        box = annotation.box
        if annotation.score < config.score_threshold:
            reasons[f"{FILTERED}score below the threshold"] += 1
            continue
        inside = _inside(box, config.min_visible)
        # The share that a crop shows is one of the whole box, so it must not be clipped before.
        seen = inside
        if config.image_mode == CROP:
            seen = crop_box(box, *size, config.image_size, config.min_visible)
        if seen is None:
            reasons[f"{FILTERED}box is not seen in the crop"] += 1
            continue
        if inside != box:
            reasons[f"{CLIPPED}box reaches out of the picture"] += 1
        placed.append(annotation._replace(box=seen))
    return placed


def _inside(box: Box, min_visible: float) -> Box | None:
    """The part of a box that is in the picture, or None if that is too little of it."""
    part = box
    if min(box) < 0.0 or max(box) > 1.0:
        part = Box(*(min(max(corner, 0.0), 1.0) for corner in box))
    if not (part.x1 < part.x2 and part.y1 < part.y2):
        return None
    return part if _area(part) >= min_visible * _area(box) else None


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def _group(annotations: Iterable[Annotation], caption: str) -> list[Span]:
    """One phrase for each range of characters, with its boxes in order of the annotations."""
    groups: dict[tuple[int, int], list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault((annotation.start, annotation.end), []).append(annotation)
    return [
        Span(caption[start:end], start, end, tuple(a.box for a in group), _scores(group))
        for (start, end), group in groups.items()
    ]


def _scores(group: Iterable[Annotation]) -> tuple[float, ...]:
    return tuple(annotation.score for annotation in group)


def _outer_first(spans: Iterable[Span]) -> list[Span]:
    """In order of the text, and of those that begin together the longest first."""
    return sorted(spans, key=lambda span: (span.start, -span.end))


def _drop_contained(spans: Iterable[Span], reasons: Counts) -> list[Span]:
    """Keeps phrases that are in no other one, ends included (spec section 4.3, step 3)."""
    kept = []
    reach = -1
    for span in _outer_first(spans):
        # All that begin before this one, or with it and are longer, have been seen.
        if span.end <= reach:
            reasons[f"{FILTERED}phrase is contained in another one"] += len(span.boxes)
        else:
            kept.append(span)
            reach = span.end
    return kept


def _drop_overlapping(spans: Iterable[Span], reasons: Counts) -> list[Span]:
    kept = []
    cursor = 0
    for span in _outer_first(spans):
        if span.start < cursor:
            reasons[f"{FILTERED}phrase overlaps another one"] += len(span.boxes)
        else:
            kept.append(span)
            cursor = span.end
    return kept


def _num_boxes(spans: Iterable[Span]) -> int:
    return sum(len(span.boxes) for span in spans)


def _is_whole(value: int | float) -> bool:
    return isinstance(value, int) or value.is_integer()


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
