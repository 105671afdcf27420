"""What the page shows, as JSON for its script (`page.js`)."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.vision.drawing import caption_runs, ink_on, is_drawable, span_colour

View = dict[str, Any]

_LONGEST_SIDE = 1280  # pixels of a picture that is shown
_QUALITY = 90  # of JPEG


def entry(grounded: GroundedText, who: str, *, busy: bool = False) -> View:
    """One text with its phrases, boxes and scores.

    Args:
      grounded: the text.
      who: what stands above it.
      busy: whether it is still being written.
    """
    return {
        "who": who,
        "busy": busy,
        "runs": [list(run) for run in caption_runs(grounded)],
        "spans": [_span(span, number) for number, span in enumerate(grounded.spans)],
        "problems": list(grounded.problems),
    }


def picture(image: Image.Image) -> View:
    """A picture that the browser can show, at most 1280 pixels a side."""
    shown = image.copy()
    shown.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    encoded = io.BytesIO()
    # Small pictures stay as they are: JPEG would smear them.
    kind = "PNG" if max(shown.size) <= 256 else "JPEG"
    shown.save(encoded, kind, quality=_QUALITY)
    data = base64.b64encode(encoded.getvalue()).decode()
    return {
        "src": f"data:image/{kind.lower()};base64,{data}",
        "width": image.width,
        "height": image.height,
    }


def _span(span: Span, number: int) -> View:
    colour = span_colour(number)
    return {
        "text": span.text if span.start < span.end else "",
        "colour": _css(colour),
        "ink": _css(ink_on(colour)),
        "boxes": [_box(box, span, place) for place, box in enumerate(span.boxes)],
        "score": span.phrase_score,
    }


def _box(box: Box, span: Span, place: int) -> View:
    """A box as written, and the rectangle to draw: a model may reverse corners."""
    (left, right), (top, bottom) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    drawn = [min(max(value, 0.0), 1.0) for value in (left, top, right, bottom)]
    return {
        "box": [round(value, 4) for value in box],
        "drawn": drawn if is_drawable(box) else None,
        "score": span.scores[place] if place < len(span.scores) else None,
        "marginal": span.marginal_scores[place] if place < len(span.marginal_scores) else None,
    }


def _css(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
