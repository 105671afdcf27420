"""What all drawn benchmarks share: scenes to be asked about, and pictures that are wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kosmos2_jax.data import sprites
from kosmos2_jax.data.benchmarks.writing import write
from kosmos2_jax.data.document_files import encode_png
from kosmos2_jax.data.scene_records import SceneAnnotation, scene_record
from kosmos2_jax.data.scenes import SceneConfig

SIDE = 64  # pixels
ODD = 50  # one in so many is broken, and so on
TRAIN = 20  # examples that demonstrations are drawn from


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Pictures and what is said about them.

    Attributes:
      pictures: PNG.
      said: about each.
    """

    pictures: tuple[bytes, ...]
    said: tuple[SceneAnnotation, ...]

    @classmethod
    def of_test(cls, count: int) -> Scenes:
        """The first scenes of the quickstart's test."""
        scenes = [scene_record(number, "test", 0, SceneConfig()) for number in range(count)]
        said = tuple(SceneAnnotation.from_dict(scene.content) for scene in scenes)
        return cls(tuple(scene.images[0] for scene in scenes), said)


def things(annotation: SceneAnnotation) -> list[tuple[str, str]]:
    """Colour and shape of each object of a scene, from left to right."""
    phrases = (span.text.split() for span in annotation.inventory.spans)
    return [(words[-2], words[-1]) for words in phrases]


def thing(number: int) -> tuple[str, str]:
    """One of the 42 colours and shapes."""
    colors = tuple(sprites.COLORS)
    return colors[number % len(colors)], sprites.SHAPES[number % len(sprites.SHAPES)]


def picture_of(color: str, shape: str) -> bytes:
    """One thing on grey ground, as PNG."""
    margin = SIDE // 4
    picture = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    inside = picture[margin:-margin, margin:-margin]
    inside += sprites.shape_mask(shape, SIDE - 2 * margin) * (sprites.COLORS[color] - inside)
    return encode_png((255 * picture).astype(np.uint8))


def placed(right: str, wrong: Sequence[str], place: int) -> list[str]:
    """Candidates, with the right one at a place."""
    return [*wrong[:place], right, *wrong[place:]]


def write_pictures(folder: Path, names: Sequence[str], pictures: Sequence[bytes]) -> None:
    """Writes pictures, of which one in fifty is cut short, and one is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        if number % ODD == ODD - 1:
            picture = picture[: len(picture) // 2]
        if number % ODD != ODD - 2:
            write(folder / name, picture)
