"""Phrases with boxes as people type them: Markdown links whose target is a box."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kosmos2_jax.errors import BoxError
from kosmos2_jax.grounding.boxes import Box, check_box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span

_LINK = re.compile(r"\[([^\[\]]+)\](?:\(([^()]*)\))?")


def read_links(line: str, box: Sequence[float] | None = None) -> GroundedText:
    """Reads a text in which [phrase](x1,y1,x2,y2) has a box.

    Args:
      line: what was typed.
      box: of phrases in brackets without numbers behind them, which are plain text where it is
        None.

    Raises:
      BoxError: a box is malformed.
    """
    text, spans, place = "", [], 0
    for match in _LINK.finditer(line):
        phrase, numbers = match.groups()
        if numbers is None and box is None:
            continue
        text += line[place : match.start()]
        own = check_box(box) if numbers is None else read_box(numbers)
        spans.append(Span(phrase, len(text), len(text) + len(phrase), (own,)))
        text += phrase
        place = match.end()
    return GroundedText(text + line[place:], tuple(spans))


def read_box(text: str) -> Box:
    """Reads x1,y1,x2,y2 as fractions of the picture.

    Raises:
      BoxError: these are not four numbers that make a box.
    """
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise BoxError(f"Box {text!r} must be four numbers x1,y1,x2,y2.") from None
    return check_box(numbers)
