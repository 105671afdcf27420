"""Drawn scenes: the same every time, with tight boxes and honest attributes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kosmos2_jax.data import sprites
from kosmos2_jax.data.scenes import (
    Scene,
    SceneConfig,
    combinations,
    draw_scene,
    is_held_out,
    scene_rng,
)
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.boxes import box_to_cells, cells_to_box, iou


def _scene(index: int, split: str = "train", config: SceneConfig | None = None) -> Scene:
    return draw_scene(scene_rng(0, split, index), config, split)


def test_the_same_seed_split_and_index_give_the_same_scene() -> None:
    for index in (0, 1, 10**6):
        first, again = _scene(index), _scene(index)
        assert first.objects == again.objects
        np.testing.assert_array_equal(first.pixels, again.pixels)


def test_other_seeds_splits_and_indices_give_other_scenes() -> None:
    pictures = [
        draw_scene(scene_rng(seed, split, index), split="train").pixels.tobytes()
        for seed, split, index in itertools.product((0, 1), ("train", "test"), (0, 1))
    ]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_pictures_have_the_asked_shape(size: int) -> None:
    scene = _scene(3, config=SceneConfig(image_size=size))
    assert scene.pixels.shape == (size, size, 3)
    assert scene.pixels.dtype == np.uint8


@pytest.mark.parametrize("shape", (*sprites.SHAPES, *sprites.NEW_SHAPES))
def test_masks_touch_all_four_sides(shape: str) -> None:
    for side in range(7, 95):
        mask = sprites.shape_mask(shape, side)
        assert mask.shape == (side, side, 1)
        edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
        assert all(edge.max() > 0.1 for edge in edges), side
        assert 0.0 <= mask.min() and mask.max() == 1.0


def test_boxes_are_tight_around_what_is_drawn() -> None:
    """On a flat background whatever differs from it belongs to an object."""
    flat = [scene for scene in map(_scene, range(300)) if scene.background == "flat"]
    assert len(flat) > 30
    for scene in flat:
        colors, counts = np.unique(scene.pixels.reshape(-1, 3), axis=0, return_counts=True)
        drawn = (scene.pixels != colors[counts.argmax()]).any(axis=2)
        for item in scene.objects:
            x1, y1, x2, y2 = (round(v * 64) for v in item.box)
            inside = drawn[y1:y2, x1:x2]
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
            drawn[y1:y2, x1:x2] = False
        assert not drawn.any()


def test_objects_are_apart_and_inside_the_picture() -> None:
    counts = set()
    for scene in map(_scene, range(500)):
        counts.add(len(scene.objects))
        for item in scene.objects:
            assert 0 <= item.box.x1 < item.box.x2 <= 1
            assert 0 <= item.box.y1 < item.box.y2 <= 1
        assert all(iou(a.box, b.box) == 0 for a, b in itertools.combinations(scene.objects, 2))
    assert counts == {2, 3, 4}


def test_size_words_are_honest() -> None:
    sides: dict[str, list[float]] = {"small": [], "large": []}
    for scene in map(_scene, range(200)):
        for item in scene.objects:
            sides[item.size].append(item.box.x2 - item.box.x1)
    assert 1.3 * max(sides["small"]) < min(sides["large"])


def test_the_plain_color_of_an_object_is_its_word() -> None:
    names = list(sprites.COLORS)
    table = np.array([sprites.COLORS[name] for name in names])
    for scene in map(_scene, range(200)):
        for item in scene.objects:
            if item.texture == "plain" and item.shape != "ring":
                center = np.array([item.box.y1 + item.box.y2, item.box.x1 + item.box.x2]) * 32
                color = scene.pixels[tuple(center.astype(int))] / 255.0
                assert names[np.abs(table - color).sum(axis=1).argmin()] == item.color


def test_held_out_combinations_are_only_in_the_test() -> None:
    config = SceneConfig()
    train = [item for i in range(1500) for item in _scene(i, "train").objects]
    assert not any(is_held_out(item, config) for item in train)
    # Training does show each of the colours and shapes by itself.
    assert {item.color for item in train} == set(sprites.COLORS)
    assert {item.shape for item in train} == set(sprites.SHAPES)
    test = [item for i in range(500) for item in _scene(i, "test").objects]
    shown = {item.combination for item in test if is_held_out(item, config)}
    assert shown == set(config.held_out)
    assert set(combinations(config, "test")) - set(combinations(config, "train")) == shown


def test_nearly_every_box_survives_an_8x8_grid() -> None:
    """The ceiling of REC accuracy: boxes as the tokens of the quickstart's grid tell them."""
    boxes = [item.box for i in range(300) for item in _scene(i).objects]
    hits = [iou(box, cells_to_box(*box_to_cells(box, 8), 8)) >= 0.5 for box in boxes]
    assert np.mean(hits) > 0.96


@pytest.mark.parametrize(
    "settings",
    [
        {"min_objects": 1},
        {"min_objects": 3, "max_objects": 2},
        {"held_out": (("pink", "star"),)},
        {"held_out": (("red", "heptagon"),)},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SceneConfig(**settings)  # type: ignore[arg-type]


def test_unknown_sprites_are_refused() -> None:
    with pytest.raises(ValueError, match="heptagon"):
        sprites.shape_mask("heptagon", 10)
    with pytest.raises(ValueError, match="woolly"):
        sprites.texture_pattern("woolly", 10)
    with pytest.raises(ValueError, match="sea"):
        sprites.draw_background(np.random.default_rng(0), "sea", 10)
