"""Boxes, location tokens, markup, vocabulary and prompts: pure Python and NumPy.

A `GroundedText` is text whose phrases point at boxes. `Kosmos2Vocabulary.encode_grounded` turns
it into training tokens, `render` into markup; `parse` reads markup that the model wrote.
"""

from kosmos2_jax.grounding.boxes import (
    HUGGING_FACE,
    OFFICIAL,
    Box,
    box_to_cells,
    cells_to_box,
    check_box,
    iou,
)
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.markup import parse, render
from kosmos2_jax.grounding.tags import has_tags, location_token, require_no_tags
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

__all__ = [
    "HUGGING_FACE",
    "OFFICIAL",
    "Box",
    "GroundedText",
    "Kosmos2Vocabulary",
    "Span",
    "box_to_cells",
    "cells_to_box",
    "check_box",
    "has_tags",
    "iou",
    "location_token",
    "parse",
    "render",
    "require_no_tags",
]
