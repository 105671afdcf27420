"""Shapes, textures and backgrounds of the quickstart's scenes as NumPy arrays.

Masks and textures are drawn once for every size and then reused, which makes a scene cost well
under a millisecond.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Of which no scene of the quickstart's has any; all their letters are known to its text model.
NEW_SHAPES = ("heart",)
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("flat", "gradient", "noise", "stripes")
COLORS = {
    "red": (0.86, 0.11, 0.13),
    "orange": (0.98, 0.53, 0.05),
    "yellow": (0.97, 0.90, 0.12),
    "green": (0.10, 0.62, 0.18),
    "cyan": (0.12, 0.82, 0.85),
    "blue": (0.10, 0.22, 0.85),
    "purple": (0.60, 0.15, 0.72),
}

_OVERSAMPLING = 8  # subpixels a side, 65 levels of alpha


@functools.cache
def shape_mask(shape: str, side: int) -> np.ndarray:
    """Antialiased coverage of a shape that touches all four sides of its square.

    Args:
      shape: one of `SHAPES` or `NEW_SHAPES`.
      side: pixels.

    Returns:
      Read-only float32 [side, side, 1], 0 outside and 1 inside.
    """
    fine = side * _OVERSAMPLING
    canvas = Image.new("L", (fine, fine), 0)
    _draw_shape(ImageDraw.Draw(canvas), shape, fine - 1)
    blocks = np.asarray(canvas, np.float32).reshape(side, _OVERSAMPLING, side, _OVERSAMPLING)
    mask = (blocks.mean(axis=(1, 3)) / 255.0)[..., None]
    mask.flags.writeable = False
    return mask


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, end: int) -> None:
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, end, end), fill=255)
        inset = end * 0.27
        draw.ellipse((inset, inset, end - inset, end - inset), fill=0)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        draw.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        near, far = end * 0.31, end * 0.69
        draw.rectangle((near, 0, far, end), fill=255)
        draw.rectangle((0, near, end, far), fill=255)
    elif shape == "star":
        draw.polygon([(x * end, y * end) for x, y in _star_points()], fill=255)
    elif shape == "heart":
        draw.polygon([(x * end, y * end) for x, y in _heart_points()], fill=255)
    else:
        known = ", ".join((*SHAPES, *NEW_SHAPES))
        raise ValueError(f"unknown shape {shape!r}; known: {known}")


def _star_points() -> list[tuple[float, float]]:
    """Ten corners of a five-pointed star, stretched to fill the unit square."""
    corners = []
    for k in range(10):
        radius = 1.0 if k % 2 == 0 else 0.45
        angle = math.pi * k / 5
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return _stretched(corners)


def _heart_points() -> list[tuple[float, float]]:
    """A heart, stretched to fill the unit square: the well-known curve of sines and cosines."""
    corners = []
    for k in range(64):
        t = 2 * math.pi * k / 64
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((16 * math.sin(t) ** 3, -up))
    return _stretched(corners)


def _stretched(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    xs, ys = zip(*corners, strict=True)
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return [((x - min(xs)) / width, (y - min(ys)) / height) for x, y in corners]


@functools.cache
def texture_pattern(texture: str, side: int) -> np.ndarray:
    """Where a texture shows its second colour: read-only float32 [side, side, 1] in 0..1."""
    period = 4 if side < 21 else 6
    y, x = np.mgrid[:side, :side]
    if texture == "plain":
        pattern = np.zeros((side, side))
    elif texture == "striped":
        pattern = (x + y) % period < period // 2
    elif texture == "dotted":
        offset = (side % period) // 2 + 1
        pattern = ((x - offset) % period < period // 2) & ((y - offset) % period < period // 2)
    else:
        raise ValueError(f"unknown texture {texture!r}; known: {', '.join(TEXTURES)}")
    pattern = pattern.astype(np.float32)[..., None]
    pattern.flags.writeable = False
    return pattern


@functools.cache
def _ramps(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    return line[None, :, None], line[:, None, None]


def draw_background(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """A dull background that no object colour is mistaken for.

    Args:
      rng: source of chance.
      kind: one of `BACKGROUNDS`.
      size: pixels a side.

    Returns:
      float32 [size, size, 3], roughly 0..1.
    """
    # Nearly grey, between rather dark and rather light.
    base = rng.uniform(0.12, 0.88) + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = base
    if kind == "flat":
        return picture
    if kind == "noise":
        picture += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(0.05)
        return picture
    angle = rng.uniform(0, 2 * math.pi)
    across, down = _ramps(size)
    ramp = across * np.float32(math.cos(angle)) + down * np.float32(math.sin(angle))
    if kind == "gradient":
        picture += ramp * (rng.uniform(0.15, 0.4, 3) * rng.choice((-1, 1))).astype(np.float32)
    elif kind == "stripes":
        picture += np.sin(ramp * np.float32(rng.uniform(20, 60))) * np.float32(0.05)
    else:
        raise ValueError(f"unknown background {kind!r}; known: {', '.join(BACKGROUNDS)}")
    return picture
