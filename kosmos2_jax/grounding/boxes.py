"""Boxes and the grid cells that stand for them (spec sections 3.3 and 3.4).

A box is normalised to its picture: (0, 0) is the upper left corner, (1, 1) the lower right one.
A grid of `grid_size` x `grid_size` cells covers the picture; cell `x + grid_size * y` is numbered
row by row. A box is written as the cells of its upper left and its lower right corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from kosmos2_jax.errors import BoxError

OFFICIAL = "official"
HUGGING_FACE = "hugging_face"

# The official code keeps the lower right corner just inside the picture.
_INSIDE = 0.99999


class Box(NamedTuple):
    """Corners of a box as fractions of the picture's width and height, x1 < x2 and y1 < y2."""

    x1: float
    y1: float
    x2: float
    y2: float


def check_box(box: Sequence[float]) -> Box:
    """Returns `box` as a `Box` of floats if it lies in the picture.

    Args:
      box: four numbers x1, y1, x2, y2, normalised to 0..1.

    Raises:
      BoxError: it has not four numbers, or is NaN, outside of 0..1, reversed or without area.
    """
    try:
        result = Box(*(float(value) for value in box))
    except (TypeError, ValueError):
        raise BoxError(f"Box {box!r} must be four numbers x1, y1, x2, y2.") from None
    if 0.0 <= result.x1 < result.x2 <= 1.0 and 0.0 <= result.y1 < result.y2 <= 1.0:
        return result
    raise BoxError(_fault(result))


def _fault(box: Box) -> str:
    """What is wrong with a box that is not well-formed, as a sentence."""
    shown = f"Box ({', '.join(f'{value:g}' for value in box)})"
    if not all(math.isfinite(value) for value in box):
        return f"{shown} has a coordinate that is not a finite number."
    outside = [name for name, value in box._asdict().items() if not 0.0 <= value <= 1.0]
    if outside:
        return (
            f"{shown} is outside the picture: {', '.join(outside)} must be within 0..1 "
            "(fractions of the picture's width and height, not pixels)."
        )
    low, high = ("x1", "x2") if box.x1 >= box.x2 else ("y1", "y2")
    what = "is reversed" if getattr(box, low) > getattr(box, high) else "has no area"
    return f"{shown} {what}: {low} must be less than {high}."


def box_to_cells(
    box: Sequence[float], grid_size: int, quantiser: str = OFFICIAL
) -> tuple[int, int]:
    """Returns the cells of the upper left and the lower right corner (spec section 3.3).

    The two quantisers differ only where x2 or y2 falls exactly on the edge of a cell: the
    official one then takes the next cell, transformers the one that ends there (trap T-16).

    Args:
      box: see `check_box`.
      grid_size: cells a side, 32 for the released model.
      quantiser: "official" (what training used) or "hugging_face".

    Raises:
      BoxError: the box is not well-formed, or there is no such quantiser or no grid.
    """
    _check_grid(grid_size)
    x1, y1, x2, y2 = check_box(box)
    left, top = math.floor(x1 * grid_size), math.floor(y1 * grid_size)
    if quantiser == OFFICIAL:
        right = math.floor(min(x2, _INSIDE) * grid_size)
        bottom = math.floor(min(y2, _INSIDE) * grid_size)
    elif quantiser == HUGGING_FACE:
        # transformers lets a corner within rounding of 0 fall to cell -1, which no token has.
        right = max(math.ceil(x2 * grid_size - 1), 0)
        bottom = max(math.ceil(y2 * grid_size - 1), 0)
    else:
        raise BoxError(f"There is no quantiser {quantiser!r}: use 'official' or 'hugging_face'.")
    return left + grid_size * top, right + grid_size * bottom


def cells_to_box(upper_left: int, lower_right: int, grid_size: int) -> Box:
    """Returns the box that two cells stand for (spec section 3.4, official and transformers).

    Corners are the centres of the cells, but the outer edges where both cells share a row or a
    column. As in the reference nothing is checked: a model may well write a reversed pair or a
    cell beyond the grid, and so get a reversed box or one outside of 0..1.

    Args:
      upper_left: cell of the upper left corner.
      lower_right: cell of the lower right corner.
      grid_size: cells a side.

    Raises:
      BoxError: `grid_size` is less than 1.
    """
    _check_grid(grid_size)
    cell = 1.0 / grid_size
    top, left = divmod(upper_left, grid_size)
    bottom, right = divmod(lower_right, grid_size)
    near, far = (0.0, cell) if left == right or top == bottom else (cell / 2, cell / 2)
    return Box(left * cell + near, top * cell + near, right * cell + far, bottom * cell + far)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns intersection over union of two boxes, 0..1.

    A reversed box has no area and so overlaps nothing (trap T-18); two boxes without area give 0.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - shared
    return shared / union if shared > 0.0 and union > 0.0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _check_grid(grid_size: int) -> None:
    if grid_size < 1:
        raise BoxError(f"Boxes need a grid of at least 1x1 cells, not grid_size={grid_size}.")
