"""Says in plain words what is wrong with markup that a model or a person wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kosmos2_jax.grounding.boxes import cells_to_box
from kosmos2_jax.grounding.tags import (
    ANY_TAG,
    DELIMITER,
    GROUNDING,
    IMAGE_CLOSE,
    LOCATION_PATTERN,
    OBJECT_CLOSE,
    OBJECT_OPEN,
    PHRASE_CLOSE,
    PHRASE_OPEN,
)

Problem = tuple[int, str]  # place in the caption and what is wrong there

_OBJECT = re.compile(
    rf"{OBJECT_OPEN}(?P<body>(?:{LOCATION_PATTERN}|{DELIMITER})*)(?P<close>{OBJECT_CLOSE})?"
)
_OBJECT_PART = re.compile(rf"{LOCATION_PATTERN}|{DELIMITER}|{OBJECT_CLOSE}")
_PHRASE_TAG = re.compile(f"{PHRASE_OPEN}|{PHRASE_CLOSE}")
_TAG_LIKE = re.compile(r"<[^>\n]*>")


def diagnose(markup: str, grid_size: int, grounded: bool) -> tuple[str, ...]:
    """Returns one sentence for each defect of the markup after the last `</image>`.

    Args:
      markup: what was parsed; characters are counted from 0 at its beginning.
      grid_size: location cells a side.
      grounded: whether parsing found any box; if not, the last sentence says why.
    """
    caption = markup.rpartition(IMAGE_CLOSE)[2]
    offset = len(markup) - len(caption)
    found = [
        *_phrase_problems(caption),
        *_object_problems(caption, grid_size),
        *_stray_problems(caption),
    ]
    problems = [f"{what} at character {place + offset}." for place, what in sorted(found)]
    if not grounded:
        problems.append(f"Nothing is grounded: {_why_ungrounded(markup, caption)}.")
    return tuple(problems)


def _why_ungrounded(markup: str, caption: str) -> str:
    if OBJECT_OPEN in caption:
        return "no <object> in the output is well-formed"
    if GROUNDING in markup or _PHRASE_TAG.search(caption):
        return "the output has no <object> with location tokens"
    return "no <grounding> tags in the output: ask with grounded=True"


def _phrase_problems(caption: str) -> Iterator[Problem]:
    """Tags of phrases that do not pair, and phrases that are empty, hold tags or have no box."""
    opened: int | None = None
    for match in _PHRASE_TAG.finditer(caption):
        if match.group() == PHRASE_OPEN:
            if opened is not None:
                yield match.start(), "two phrases overlap: <phrase> inside a phrase"
            opened = match.start()
        elif opened is None:
            yield match.start(), "</phrase> without an opening <phrase>"
        else:
            name = caption[opened + len(PHRASE_OPEN) : match.start()]
            if not name.strip():
                yield opened, "empty phrase"
            elif "<" in name:
                yield opened, f"phrase {name.strip()!r} holds '<' and so cannot have a box"
            elif OBJECT_OPEN not in caption[match.end() :].partition(PHRASE_OPEN)[0]:
                yield opened, f"phrase {name.strip()!r} without a box"
            opened = None
    if opened is not None:
        yield opened, "<phrase> without a closing </phrase>"


def _object_problems(caption: str, grid_size: int) -> Iterator[Problem]:
    """Objects that are cut short, malformed, without a phrase or with impossible boxes."""
    for match in _OBJECT.finditer(caption):
        place = match.start()
        before = caption[:place]
        if not before.endswith(PHRASE_CLOSE):
            between = before.rpartition(PHRASE_CLOSE)[2]
            if PHRASE_CLOSE in before and not _OBJECT_PART.search(between):
                yield place - len(between), "text between </phrase> and <object>"
            else:
                yield place, "<object> without a phrase before it"
        if match["close"] is None:
            yield place, "<object> without a closing </object>"
            continue
        for box in match["body"].split(DELIMITER):
            cells = [int(number) for number in re.findall(r"\d+", box)]
            if len(cells) != 2:
                yield place, f"box of {len(cells)} location tokens instead of 2"
            yield from ((place, what) for what in _box_problems(cells, grid_size))


def _box_problems(cells: list[int], grid_size: int) -> Iterator[str]:
    outside = [cell for cell in cells if cell >= grid_size**2]
    for cell in outside:
        yield f"location token {cell} outside the {grid_size}x{grid_size} grid"
    if len(cells) == 2 and not outside:
        box = cells_to_box(*cells, grid_size)
        if box.x1 >= box.x2 or box.y1 >= box.y2:
            yield f"reversed box {cells[0]}, {cells[1]}"


def _stray_problems(caption: str) -> Iterator[Problem]:
    """Parts of objects outside of any, and text that is dropped because it looks like a tag."""
    inside = [match.span() for match in _OBJECT.finditer(caption)]
    for match in _TAG_LIKE.finditer(caption):
        token, place = match.group(), match.start()
        if ANY_TAG.fullmatch(token) is None:
            yield place, f"{token!r} taken for a tag and dropped from the text"
        elif _OBJECT_PART.fullmatch(token) and not any(a <= place < b for a, b in inside):
            yield place, f"{token} outside of any <object>"
