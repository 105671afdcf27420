"""Grounded text as the string with tags that Kosmos-2 reads and writes (spec sections 3.4, 3.5).

a<phrase> dog</phrase><object><patch_index_0044><patch_index_0863></object> on a bed
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.boxes import OFFICIAL, box_to_cells, cells_to_box
from kosmos2_jax.grounding.diagnosis import diagnose
from kosmos2_jax.grounding.grounded_text import GroundedText, Span, sorted_spans
from kosmos2_jax.grounding.tags import (
    DELIMITER,
    GROUNDING,
    IMAGE_CLOSE,
    IMAGE_OPEN,
    LOCATION_PATTERN,
    OBJECT_CLOSE,
    OBJECT_OPEN,
    PHRASE_CLOSE,
    PHRASE_OPEN,
    has_tags,
    location_token,
    require_no_tags,
)

__all__ = [
    "DELIMITER",
    "GROUNDING",
    "IMAGE_CLOSE",
    "IMAGE_OPEN",
    "OBJECT_CLOSE",
    "OBJECT_OPEN",
    "PHRASE_CLOSE",
    "PHRASE_OPEN",
    "has_tags",
    "location_token",
    "parse",
    "render",
    "render_object",
    "require_no_tags",
]

_PAIR = rf"(?:{LOCATION_PATTERN}){{2}}"
_OBJECT = re.compile(
    rf"(?:{PHRASE_OPEN}(?P<name>[^<]+){PHRASE_CLOSE})?"
    rf"{OBJECT_OPEN}(?P<pairs>{_PAIR}(?:{DELIMITER}{_PAIR})*){OBJECT_CLOSE}"
)
# Whatever looks like a tag is dropped from the text, known or not.
_TAG_LIKE = re.compile(r"<[^>\n]*>")


def render_object(
    boxes: Sequence[Sequence[float]], grid_size: int, quantiser: str = OFFICIAL
) -> str:
    """Returns `<object>...</object>` for the boxes of one phrase, or "" where there are none."""
    if not boxes:
        return ""
    pairs = (
        "".join(location_token(cell) for cell in box_to_cells(box, grid_size, quantiser))
        for box in boxes
    )
    return OBJECT_OPEN + DELIMITER.join(pairs) + OBJECT_CLOSE


def render(grounded: GroundedText, grid_size: int, quantiser: str = OFFICIAL) -> str:
    """Returns the text with tags around its phrases, without a leading `<grounding>`.

    The space before a phrase stands inside its tag, as the model writes it. Spans without boxes
    get `<phrase>` tags only. Except for the quantisation of boxes, `parse` gives the text back.

    Args:
      grounded: text without "<", and spans that do not overlap.
      grid_size: location cells a side.
      quantiser: "official" or "hugging_face", see `box_to_cells`.

    Raises:
      MarkupError: the text holds "<" (it would be read as a tag), or spans do not fit it.
      BoxError: a box is malformed.
    """
    text = require_no_tags(grounded.text, "The text to render")
    if "<" in text:
        raise MarkupError(
            f"'<' at character {text.index('<')} of the text to render would be read as the "
            "beginning of a tag: remove it."
        )
    parts = []
    cursor = 0
    for span in sorted_spans(grounded):
        before, phrase = text[cursor : span.start], text[span.start : span.end]
        if before[-1:].isspace():
            before, phrase = before[:-1], before[-1] + phrase
        elif span.start == 0 and not phrase[0].isspace():
            phrase = " " + phrase
        parts += [before, PHRASE_OPEN, phrase, PHRASE_CLOSE]
        parts.append(render_object(span.boxes, grid_size, quantiser))
        cursor = span.end
    return "".join(parts) + text[cursor:]


def parse(markup: str, grid_size: int) -> GroundedText:
    """Reads the model's output, equal to transformers' `post_process_generation` (spec 3.5).

    Only what follows the last `</image>` counts. A phrase is grounded if `<object>` follows it
    immediately; boxes without such a phrase become spans with a placeholder name, and objects
    that are malformed are dropped. What is wrong is said in `problems`, with places counted in
    characters of `markup`. Nothing raises: a model may write anything.

    Args:
      markup: prompt and continuation, or the continuation alone.
      grid_size: location cells a side.
    """
    caption = markup.rpartition(IMAGE_CLOSE)[2]
    clean = _without_tags(caption)
    indent = len(clean) - len(clean.lstrip())
    spans = []
    for match in _OBJECT.finditer(caption):
        numbers = [int(number) for number in re.findall(r"\d+", match["pairs"])]
        cells = list(zip(numbers[::2], numbers[1::2], strict=True))
        boxes = tuple(cells_to_box(*pair, grid_size) for pair in cells)
        name = match["name"]
        if name is None:
            place = len(_without_tags(caption[: match.start()])) - indent
            spans += [
                Span(f"<patch_index_{first}><patch_index_{second}>", place, place, (box,))
                for (first, second), box in zip(cells, boxes, strict=True)
            ]
            continue
        # The reference measures both ends on their own, which matters where "<" is in the text.
        start = len(_without_tags(caption[: match.start("name")])) - indent
        end = len(_without_tags(caption[: match.end("name")])) - indent
        start += len(name) - len(name.lstrip())
        end -= len(name) - len(name.rstrip())
        spans.append(Span(name.strip(), start, end, boxes))
    problems = diagnose(markup, grid_size, grounded=bool(spans))
    return GroundedText(clean.strip(), tuple(spans), problems)


def _without_tags(text: str) -> str:
    return _TAG_LIKE.sub("", text)
