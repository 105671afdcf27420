"""Results in other forms: regions cut out of the picture, annotations of COCO's kind.

JSON is `GroundedText.to_dict`, a picture `kosmos2_jax.vision.drawing.draw_grounded`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from kosmos2_jax.grounding.boxes import Box, check_box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.vision.preprocessing import ImageSource
from kosmos2_jax.vision.remote import open_image


def crop(image: ImageSource, box: Sequence[float]) -> Image.Image:
    """The part of a picture that is in a box, all pixels that it touches.

    Args:
      image: the picture.
      box: x1, y1, x2, y2 as fractions of the picture.

    Raises:
      ImageError: the picture cannot be read.
      BoxError: the box is reversed, outside of the picture or not a number.
    """
    picture, (x1, y1, x2, y2) = open_image(image), check_box(box)
    left, top = math.floor(x1 * picture.width), math.floor(y1 * picture.height)
    right, bottom = math.ceil(x2 * picture.width), math.ceil(y2 * picture.height)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def coco_annotations(
    grounded: GroundedText, width: int, height: int, image_id: int, first_id: int = 1
) -> list[dict[str, Any]]:
    """The boxes as entries of COCO's `annotations`, with the phrase beside them.

    `bbox` is [left, top, width, height] in pixels. There are no categories, so that
    `category_id` is 1 for all; `score` is as in COCO's results, and left out where not known.
    Reversed boxes, which a model may write without the grammar, have no area and are left out.

    Args:
      grounded: the text.
      width: of the picture in pixels.
      height: of the picture in pixels.
      image_id: of the picture.
      first_id: of the first annotation.
    """
    found: list[dict[str, Any]] = []
    for span in grounded.spans:
        for number, (x1, y1, x2, y2) in enumerate(span.boxes):
            if x1 >= x2 or y1 >= y2:
                continue
            sides = (x2 - x1) * width, (y2 - y1) * height
            entry = {
                "id": first_id + len(found),
                "image_id": image_id,
                "category_id": 1,
                "bbox": [x1 * width, y1 * height, *sides],
                "area": sides[0] * sides[1],
                "iscrowd": 0,
                "phrase": span.text,
            }
            if span.scores:
                entry["score"] = span.scores[number]
            found.append(entry)
    return found


def with_subject(answer: GroundedText, box: Box) -> GroundedText:
    """The answer of `Questions.refer` as a sentence, "It is ...", in which "It" has the box."""
    beginning = "It is "
    shift = len(beginning)
    moved = (
        dataclasses.replace(span, start=span.start + shift, end=span.end + shift)
        for span in answer.spans
    )
    subject = Span("It", 0, 2, (box,))
    return GroundedText(beginning + answer.text, (subject, *moved), answer.problems)


def as_said(answer: GroundedText) -> GroundedText:
    """The answer as a turn of a conversation can hold it: a box without a phrase is left out."""
    spans = tuple(span for span in answer.spans if span.start < span.end)
    return dataclasses.replace(answer, spans=spans)
