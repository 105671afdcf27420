"""Measuring, shortening and wrapping text for pictures.

DejaVu Sans comes along (fonts/, licence beside it), because Pillow's own font has no accents and
not every machine has another.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import ImageFont

_FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_ELLIPSIS = "…"

Key = TypeVar("Key")
Run = tuple[str, Key]


@functools.lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans at a size in pixels."""
    return ImageFont.truetype(str(_FONT), size)


def line_height(font: ImageFont.FreeTypeFont) -> int:
    """Returns the pixels from the top of the tallest to the bottom of the lowest letter."""
    return sum(font.getmetrics())


def clean(text: str) -> str:
    """Returns text as one line: accents composed, any white space or control code a space."""
    text = unicodedata.normalize("NFC", text)
    visible = (" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join("".join(visible).split())


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Returns text cut with an ellipsis to `width` pixels; empty if not even that fits."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # `low` letters fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = font.getlength(text[:middle].rstrip() + _ELLIPSIS) <= width
        low, high = (middle, high) if fits else (low, middle)
    return text[:low].rstrip() + _ELLIPSIS if low else ""


def wrap(
    runs: Iterable[Run[Key]], font: ImageFont.FreeTypeFont, width: float
) -> list[list[Run[Key]]]:
    """Returns runs of text broken into lines of at most `width` pixels.

    Lines break between words, or within a word that is wider than a line.

    Args:
      runs: (text, key) in order; the key (a colour, say) stays with every piece of its text.
      font: that measures the text.
      width: of a line in pixels.
    """
    lines: list[list[Run[Key]]] = [[]]
    used = 0.0
    for text, key in runs:
        for piece in re.findall(r"\s+|\S+", unicodedata.normalize("NFC", text)):
            blank = piece.isspace()
            piece = " " if blank else piece
            length = font.getlength(piece)
            if used and used + length > width:
                lines.append([])
                used = 0.0
            if blank and not used:
                continue
            *full, piece = _break_word(piece, font, width)
            for part in full:
                lines[-1].append((part, key))
                lines.append([])
                used = 0.0
            lines[-1].append((piece, key))
            used += font.getlength(piece)
    return [_merge(line) for line in lines if line]


def _break_word(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    parts = []
    while len(word) > 1 and font.getlength(word) > width:
        lengths = (n for n in range(2, len(word)) if font.getlength(word[:n]) > width)
        count = next(lengths, len(word))
        parts.append(word[: count - 1])
        word = word[count - 1 :]
    return [*parts, word]


def _merge(line: Sequence[Run[Key]]) -> list[Run[Key]]:
    """Joins neighbours with the same key and drops the white space at the end of a line."""
    merged: list[Run[Key]] = []
    for text, key in line:
        if merged and merged[-1][1] == key:
            merged[-1] = (merged[-1][0] + text, key)
        else:
            merged.append((text, key))
    text, key = merged[-1]
    return [*merged[:-1], (text.rstrip(), key)] if text.strip() else merged[:-1]
