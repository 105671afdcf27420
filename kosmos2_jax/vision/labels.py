"""Finding a place for every label: inside the picture, near its box, on no other label."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Rect(NamedTuple):
    """A rectangle of pixels; right and bottom are the first column and row outside of it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def overlaps(self, other: Rect) -> bool:
        """Says whether the two share a pixel."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def place_labels(
    boxes: Sequence[Rect], sizes: Sequence[tuple[int, int]], width: int, height: int
) -> list[Rect | None]:
    """Returns a place for the label of each box, or None for one that finds no room.

    First each label tries, in order, the places on and in the edges of its own box. Those that
    found none take the nearest free place of the picture, if there is one.

    Args:
      boxes: what the labels belong to, within the picture.
      sizes: width and height of each label in pixels.
      width: of the picture in pixels.
      height: of the picture in pixels.
    """
    places: list[Rect | None] = [None] * len(boxes)
    fitting = [i for i, (w, h) in enumerate(sizes) if w <= width and h <= height]
    for i in fitting:
        taken = [place for place in places if place]
        near = _places_at_box(boxes[i], *sizes[i], width, height)
        places[i] = next((p for p in near if not any(map(p.overlaps, taken))), None)
    for i in fitting:
        if places[i] is None:
            taken = [place for place in places if place]
            places[i] = _nearest_free(boxes[i], *sizes[i], width, height, taken)
    return places


def _places_at_box(box: Rect, w: int, h: int, width: int, height: int) -> Iterator[Rect]:
    above, below = box.top - h, box.bottom
    inner_bottom, flush_right = box.bottom - h, box.right - w
    for left, top in (
        (box.left, above),
        (box.left, box.top),
        (box.left, below),
        (flush_right, above),
        (flush_right, below),
        (flush_right, box.top),
        (box.left, inner_bottom),
        (flush_right, inner_bottom),
    ):
        left, top = min(max(left, 0), width - w), min(max(top, 0), height - h)
        yield Rect(left, top, left + w, top + h)


def _nearest_free(
    box: Rect, w: int, h: int, width: int, height: int, taken: Sequence[Rect]
) -> Rect | None:
    """Returns the free place nearest to the box's upper left corner.

    Any free place can slide left and up until it touches a label or the picture's edge, so it is
    enough to look at positions beside labels and edges (and level with the box, to stay near).
    """
    lefts = {0, width - w, box.left, *(t.right for t in taken), *(t.left - w for t in taken)}
    tops = {0, height - h, box.top, *(t.bottom for t in taken), *(t.top - h for t in taken)}
    inside_x = [x for x in lefts if 0 <= x <= width - w]
    inside_y = [y for y in tops if 0 <= y <= height - h]
    places = np.array(list(itertools.product(inside_x, inside_y)))
    order = np.argsort(np.hypot(places[:, 0] - box.left, places[:, 1] - box.top), kind="stable")
    left, top = places[order].T
    free = np.ones(len(places), bool)
    for other in taken:
        free &= (
            (left >= other.right)
            | (left + w <= other.left)
            | (top >= other.bottom)
            | (top + h <= other.top)
        )
    if not free.any():
        return None
    best = int(np.argmax(free))
    return Rect(int(left[best]), int(top[best]), int(left[best]) + w, int(top[best]) + h)
