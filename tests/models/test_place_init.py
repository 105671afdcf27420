"""The initial values of models without pretrained vision: every latent looks at its place."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.layout import flatten
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.models.place_init import place_codes, place_latents, place_vision
from kosmos2_jax.models.resampler import Resampler
from kosmos2_jax.models.vision_transformer import VisionTransformer

GRID, SIDE = 8, 4
CONFIG = preset("tiny").replace(
    vision={"image_size": 32, "patch_size": 4, "hidden_size": 64, "num_layers": 1, "num_heads": 4},
    resampler={"num_latents": SIDE**2},
    decoder={"hidden_size": 64, "num_layers": 1, "num_heads": 2},
)


def pictures(seed: int, count: int) -> np.ndarray:
    """Flat backgrounds with a few rectangles, roughly normalised."""
    rng = np.random.default_rng(seed)
    size = CONFIG.vision.image_size
    made = np.broadcast_to(rng.normal(size=(count, 1, 1, 3)), (count, size, size, 3)).copy()
    for picture in made:
        for _ in range(3):
            top, left = rng.integers(0, size - 8, 2)
            height, width = rng.integers(4, 12, 2)
            picture[top : top + height, left : left + width] = rng.normal(size=3)
    return made.astype(np.float32)


@pytest.fixture(scope="module")
def placed() -> tuple[Any, Any, np.ndarray]:
    """Fresh parameters, the placed ones, and vision states of pictures not placed with."""
    fresh = nn.meta.unbox(jax.jit(lambda key: initial_params(CONFIG, key))(jax.random.key(0)))
    params = place_vision(fresh, CONFIG)
    see = jax.jit(VisionTransformer(CONFIG.vision).apply)
    states = np.asarray(see({"params": params["vision"]}, pictures(0, 128)))
    params = place_latents(params, CONFIG, jax.random.key(1), states)
    return fresh, params, np.asarray(see({"params": params["vision"]}, pictures(1, 16)))


def test_each_latent_attends_to_its_place(placed, resampler_attention):
    _, params, states = placed
    resampler = Resampler(CONFIG.resampler, CONFIG.decoder.hidden_size, CONFIG.decoder.num_heads)
    attention = resampler_attention(resampler, params["resampler"], states).mean(axis=(0, 1))
    patches, latents = attention[:, 1 : 1 + GRID**2], attention[:, 1 + GRID**2 :]
    best = patches.argmax(axis=1)
    steps = (np.arange(SIDE) + 0.5) * GRID / SIDE
    np.testing.assert_array_equal(best // GRID, np.repeat(steps.astype(int), SIDE))
    np.testing.assert_array_equal(best % GRID, np.tile(steps.astype(int), SIDE))
    assert latents.sum(axis=1).max() < 0.2
    assert patches.max(axis=1).min() > 5 / GRID**2


def test_only_what_it_says_is_changed(placed):
    fresh, params, _ = placed
    before, after = flatten(fresh), flatten(params)
    assert {path: leaf.shape for path, leaf in before.items()} == {
        path: leaf.shape for path, leaf in after.items()
    }
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {
        "vision/position_embedding",
        "vision/patch_embedding/kernel",
        "resampler/latents",
        "resampler/projection/kernel",
        "resampler/projection/bias",
        *(f"resampler/attention/{name}/{part}" for name in ("query", "key", "out")
          for part in ("kernel", "bias")),
    }  # fmt: skip


def test_codes_tell_places_apart():
    codes = place_codes(GRID, 64)
    assert codes.shape == (GRID**2, 64) and codes.dtype == np.float32
    assert not codes[:, :32].any(), "the first half of the channels is for contents"
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
    assert (distances + 10 * np.eye(GRID**2)).min() > 1.0


def test_latents_must_form_a_square(placed):
    _, params, states = placed
    config = CONFIG.replace(resampler={"num_latents": 15})
    with pytest.raises(ConfigError, match="square number of latents, not 15"):
        place_latents(params, config, jax.random.key(0), states)
