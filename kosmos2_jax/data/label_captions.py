"""Captions of pictures whose boxes have labels: composed from the labels, or searched for them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from kosmos2_jax.data.scene_language import COUNTS

Annotation = list[float]  # [start, end, x1, y1, x2, y2, score]

# The prompt of a short description (spec section 3.6), which the model then goes on with.
OPENING = "An image of"

_DETERMINERS = frozenset(
    "a an the this that these those some my your his her its our their one".split()
) | frozenset(COUNTS)
_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "knife": "knives", "shelf": "shelves",
    "leaf": "leaves", "loaf": "loaves", "wolf": "wolves", "sheep": "sheep", "deer": "deer",
    "fish": "fish", "aircraft": "aircraft", "bus": "buses", "broccoli": "broccoli",
}  # fmt: skip
# Words that are plural already, of which one thing has no article.
_PLURAL_WORDS = frozenset("scissors skis pants trousers jeans shorts glasses sunglasses".split())


@dataclasses.dataclass(frozen=True)
class LabelledBox:
    """A box and what is in it.

    Attributes:
      label: a name, a phrase or a referring expression.
      box: x1, y1, x2, y2, in fractions of the picture or in pixels, as its source has them.
      score: confidence; 1 for boxes that people drew.
      span: characters of the caption that the label stands for, half-open, where they are known.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0
    span: tuple[int, int] | None = None


def compose_caption(
    boxes: Sequence[LabelledBox], opening: str = OPENING
) -> tuple[str, list[Annotation]]:
    """Returns a caption that names all labels, and where each of the boxes is in it.

    Boxes of one label share a phrase: "An image of two dogs, a cat and the red ball." A label that
    begins with a determiner is taken as it is.

    Args:
      boxes: at least one, in any units; spans do not count.
      opening: words that it begins with, or none.

    Returns:
      The caption, and annotations in order of its phrases.
    """
    groups: dict[str, list[LabelledBox]] = {}
    for box in boxes:
        groups.setdefault(box.label, []).append(box)
    caption, annotations = f"{opening} " if opening else "", []
    for number, (label, group) in enumerate(groups.items()):
        if number:
            caption += " and " if number == len(groups) - 1 else ", "
        start = len(caption)
        caption += _noun_phrase(label, len(group))
        annotations += [_annotation(start, len(caption), box) for box in group]
    return f"{caption}.", annotations


def find_labels(
    caption: str, boxes: Iterable[LabelledBox]
) -> tuple[list[Annotation], list[LabelledBox]]:
    """Looks for labels in a caption.

    Args:
      caption: of one line.
      boxes: in any units. A box whose span is known needs no looking for.

    Returns:
      The annotations of boxes whose label, or its plural, the caption has as whole words, in any
      case; the phrase is its first mention that no longer label holds, with the determiner before
      it. And the boxes whose label it has not.
    """
    boxes = list(boxes)
    places: dict[str, tuple[int, int] | None] = {}
    for label in sorted({box.label for box in boxes if box.span is None}, key=len, reverse=True):
        taken = [place for place in places.values() if place is not None]
        places[label] = _first_mention(caption, label, taken)
    annotations, missing = [], []
    for box in boxes:
        place = box.span or places[box.label]
        if place is None:
            missing.append(box)
        else:
            annotations.append(_annotation(*place, box))
    return annotations, missing


def _annotation(start: int, end: int, box: LabelledBox) -> Annotation:
    return [start, end, *box.box, box.score]


def _first_mention(
    caption: str, label: str, taken: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    forms = "|".join(re.escape(form) for form in (plural(label), label))
    determiners = "|".join(sorted(_DETERMINERS))
    pattern = rf"(?<!\w)(?:(?:{determiners})\s+)?(?:{forms})(?!\w)"
    for match in re.finditer(pattern, caption, re.IGNORECASE):
        if not any(start <= match.start() and match.end() <= end for start, end in taken):
            return match.span()
    return None


def _noun_phrase(label: str, count: int) -> str:
    first, last = label.split()[0].lower(), label.split()[-1].lower()
    if first in _DETERMINERS:
        return label
    if count > 1:
        number = COUNTS[count] if count < len(COUNTS) else str(count)
        return f"{number} {plural(label)}"
    if last in _PLURAL_WORDS:
        return label
    return f"an {label}" if first[0] in "aeiou" else f"a {label}"


def plural(label: str) -> str:
    """Returns the plural of a noun or a phrase that ends in one, by English rules of spelling."""
    head, blank, last = label.rpartition(" ")
    low = last.lower()
    if low in _PLURALS:
        many = _PLURALS[low]
        return f"{head}{blank}{many.capitalize() if last[0].isupper() else many}"
    if low in _PLURAL_WORDS:
        return label
    if low.endswith(("s", "x", "z", "ch", "sh")):
        return f"{label}es"
    if low.endswith("y") and low[-2:-1] not in ("", *"aeiou"):
        return f"{label[:-1]}ies"
    return f"{label}s"
