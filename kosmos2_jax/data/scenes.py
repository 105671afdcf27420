"""Pictures of coloured shapes with known boxes: the quickstart's own data.

Everything follows from (seed, split, index), so example `i` of a split is the same on every
machine and in every run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.data import sprites
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.boxes import Box

SPLITS = ("train", "test")
SIZES = ("small", "large")


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes are made of.

    Attributes:
      image_size: pixels a side.
      min_objects: fewest objects in a scene, at least 2.
      max_objects: most objects in a scene; crowded scenes may hold fewer than drawn.
      small: range (inclusive) of the side of a small object, in 64ths of the picture; from 17
        on an 8x8 grid of locations keeps IoU 0.5 within reach of every box.
      large: the same of a large object; the gap between the two keeps the words honest.
      repeat_rate: chance that an object takes colour and shape of an earlier one, so that
        plural phrases and relations are needed.
      held_out: (color, shape) pairs that never occur in "train".
    """

    image_size: int = 64
    min_objects: int = 2
    max_objects: int = 4
    small: tuple[int, int] = (17, 18)
    large: tuple[int, int] = (24, 27)
    repeat_rate: float = 0.25
    held_out: tuple[tuple[str, str], ...] = (
        ("red", "star"),
        ("blue", "triangle"),
        ("green", "ring"),
        ("yellow", "square"),
        ("purple", "cross"),
    )

    def __post_init__(self) -> None:
        if not 2 <= self.min_objects <= self.max_objects:
            raise ConfigError(
                f"scenes need 2 <= min_objects <= max_objects, not {self.min_objects} and "
                f"{self.max_objects}"
            )
        for color, shape in self.held_out:
            if color not in sprites.COLORS or shape not in sprites.SHAPES:
                raise ConfigError(f"held_out names an unknown colour or shape: {color} {shape}")


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One drawn shape; `box` is the tight box of its visible pixels, normalised to 0..1."""

    shape: str
    color: str
    size: str
    texture: str
    box: Box

    @property
    def combination(self) -> tuple[str, str]:
        """What `SceneConfig.held_out` speaks of."""
        return self.color, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture, uint8 [S, S, 3], and what is on it."""

    pixels: np.ndarray
    objects: tuple[SceneObject, ...]
    background: str


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of example `index` of a split: independent streams for any two examples."""
    key = (SPLITS.index(split), index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def draw_scene(
    rng: np.random.Generator,
    config: SceneConfig | None = None,
    split: str = "train",
    choices: Sequence[tuple[str, str]] | None = None,
) -> Scene:
    """Draws one scene of objects whose boxes do not touch.

    Args:
      rng: usually `scene_rng(seed, split, index)`.
      config: what scenes are made of; by default `SceneConfig()`.
      split: "train" leaves out the held-out combinations, "test" draws from all alike.
      choices: (color, shape) pairs to draw from instead, each as often as it is there.
    """
    config = config or SceneConfig()
    places: list[tuple[int, int, int, str]] = []
    while len(places) < 2:
        places = _place(rng, config)
    background = sprites.BACKGROUNDS[rng.integers(len(sprites.BACKGROUNDS))]
    picture = sprites.draw_background(rng, background, config.image_size)
    choices = choices or combinations(config, split)
    objects: list[SceneObject] = []
    for x, y, side, size in places:
        if objects and rng.random() < config.repeat_rate:
            color, shape = objects[rng.integers(len(objects))].combination
        else:
            color, shape = choices[rng.integers(len(choices))]
        texture = sprites.TEXTURES[rng.integers(len(sprites.TEXTURES))]
        _paint(rng, picture[y : y + side, x : x + side], shape, color, texture)
        corners = np.array((x, y, x + side, y + side)) / config.image_size
        objects.append(SceneObject(shape, color, size, texture, Box(*corners.tolist())))
    pixels = np.clip(picture * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return Scene(pixels, tuple(objects), background)


def combinations(config: SceneConfig, split: str) -> list[tuple[str, str]]:
    """All (color, shape) pairs that may occur in a split."""
    pairs = [(color, shape) for color in sprites.COLORS for shape in sprites.SHAPES]
    if split == "train":
        return [pair for pair in pairs if pair not in config.held_out]
    return pairs


def is_held_out(item: SceneObject, config: SceneConfig) -> bool:
    """Whether training has never shown an object of this colour and shape."""
    return item.combination in config.held_out


def _place(rng: np.random.Generator, config: SceneConfig) -> list[tuple[int, int, int, str]]:
    """Picks (x, y, side, size word) of each object so that at least one pixel parts any two."""
    places: list[tuple[int, int, int, str]] = []
    for _ in range(rng.integers(config.min_objects, config.max_objects + 1)):
        wanted = SIZES[rng.integers(2)]
        for attempt in range(24):
            # Where a large object does not fit, a small one may.
            size = wanted if attempt < 12 else "small"
            low, high = config.small if size == "small" else config.large
            side = int(rng.integers(low, high + 1)) * config.image_size // 64
            x, y = rng.integers(0, config.image_size - side + 1, 2).tolist()
            if all(_apart((x, y, side), other) for other in places):
                places.append((x, y, side, size))
                break
    return places


def _apart(new: tuple[int, int, int], other: tuple[int, int, int, str]) -> bool:
    (x, y, side), (u, v, width, _) = new, other
    return x > u + width or u > x + side or y > v + width or v > y + side


def _paint(
    rng: np.random.Generator, region: np.ndarray, shape: str, color: str, texture: str
) -> None:
    """Blends one object into `region`, a float32 [side, side, 3] view of the picture."""
    side = region.shape[0]
    main = np.asarray(sprites.COLORS[color], np.float32)
    main = main + rng.uniform(-0.04, 0.04, 3).astype(np.float32)
    # The second colour of a texture is a light or dark tint, whichever contrasts.
    second = main * 0.35 if main[1] > 0.5 else main * 0.25 + 0.75
    fill = main + sprites.texture_pattern(texture, side) * (second - main)
    region += sprites.shape_mask(shape, side) * (fill - region)
