"""Pictures to try, drawn here: coloured shapes, or those of a folder."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from kosmos2_jax.data.scenes import SceneConfig, draw_scene, scene_rng
from kosmos2_jax.errors import ImageError, Kosmos2Error
from kosmos2_jax.serving.demo.desk import open_picture

_SMALLEST = 64  # pixels a side, which textures need
_MOST = 12
_SEED = 0


def draw_examples(image_size: int, count: int = 6) -> list[bytes]:
    """Pictures as PNG that no quickstart was trained on, of the size that the model sees."""
    config = SceneConfig(image_size=max(image_size, _SMALLEST), min_objects=3)
    found = []
    for index in range(count):
        scene = draw_scene(scene_rng(_SEED, "test", index), config, "test")
        encoded = io.BytesIO()
        Image.fromarray(scene.pixels).save(encoded, "PNG")
        found.append(encoded.getvalue())
    return found


def read_examples(folder: Path) -> list[bytes]:
    """The first pictures of a folder, by name; other files are passed over.

    Raises:
      Kosmos2Error: the folder is not there, or has no picture.
    """
    if not folder.is_dir():
        raise Kosmos2Error(f"There is no folder {folder}: name one that has pictures.")
    found: list[bytes] = []
    for file in sorted(folder.iterdir()):
        if len(found) == _MOST or not file.is_file():
            continue
        encoded = file.read_bytes()
        try:
            open_picture(encoded)
        except ImageError:
            continue
        found.append(encoded)
    if not found:
        raise Kosmos2Error(f"{folder} has no pictures: name a folder that has some.")
    return found
