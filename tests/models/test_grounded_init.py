"""Initial values of models without pretrained parts: looking, saying and matching."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.layout import flatten
from kosmos2_jax.models.grounded_init import ReadingHeads, ground, place_codes, place_vision
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.models.resampler import Resampler
from kosmos2_jax.models.vision_transformer import VisionTransformer

GRID, SIDE = 8, 4
CONFIG = preset("tiny").replace(
    vision={"image_size": 32, "patch_size": 4, "hidden_size": 64, "num_layers": 1, "num_heads": 4},
    resampler={"num_latents": SIDE**2},
    decoder={"hidden_size": 64, "num_layers": 2, "num_heads": 2},
)
GRID_SIZE, FIRST_LOCATION, WORDS = CONFIG.grid_size, 100, (7, 8, 9)


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


def reading_heads() -> ReadingHeads:
    rng = np.random.default_rng(5)
    width, size = CONFIG.vision.hidden_size, CONFIG.decoder.vocab_size
    seen = np.isin(np.arange(size), WORDS)
    corners = rng.normal(size=(4, width, GRID_SIZE))
    return ReadingHeads(rng.normal(size=(width, size)), seen, corners)


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def grounded(request) -> tuple[Any, Any, np.ndarray]:
    """Fresh parameters, the grounded ones, and vision states of pictures not grounded with."""
    config = CONFIG.replace(scan_layers=request.param)
    fresh = nn.meta.unbox(jax.jit(lambda key: initial_params(config, key))(jax.random.key(0)))
    params = place_vision(fresh, config)
    see = jax.jit(VisionTransformer(config.vision, config.scan_layers).apply)
    states = np.asarray(see({"params": params["vision"]}, pictures(0, 128)))
    heads = reading_heads()
    params = ground(params, config, jax.random.key(1), states, heads, FIRST_LOCATION)
    return fresh, params, np.asarray(see({"params": params["vision"]}, pictures(1, 16)))


def test_each_latent_attends_to_its_place(grounded, resampler_attention):
    _, params, states = grounded
    resampler = Resampler(CONFIG.resampler, CONFIG.decoder.hidden_size, CONFIG.decoder.num_heads)
    attention = resampler_attention(resampler, params["resampler"], states).mean(axis=(0, 1))
    patches, latents = attention[:, 1 : 1 + GRID**2], attention[:, 1 + GRID**2 :]
    best = patches.argmax(axis=1)
    steps = (np.arange(SIDE) + 0.5) * GRID / SIDE
    np.testing.assert_array_equal(best // GRID, np.repeat(steps.astype(int), SIDE))
    np.testing.assert_array_equal(best % GRID, np.tile(steps.astype(int), SIDE))
    assert latents.sum(axis=1).max() < 0.2
    assert patches.max(axis=1).min() > 5 / GRID**2


def test_soft_tokens_say_what_the_heads_read(grounded, resampler_attention):
    _, params, states = grounded
    resampler = Resampler(CONFIG.resampler, CONFIG.decoder.hidden_size, CONFIG.decoder.num_heads)
    soft = np.asarray(resampler.apply({"params": params["resampler"]}, jnp.asarray(states)))
    assert np.linalg.norm(soft, axis=-1).mean() == pytest.approx(1.0, abs=0.3)
    # What a latent attends to, read by the heads, and what it says of it, read by embeddings.
    attention = resampler_attention(resampler, params["resampler"], states).mean(axis=1)
    looked = np.einsum("bqk,bkd->bqd", attention[:, :, : states.shape[1]], states)
    table = np.asarray(params["decoder"]["token_embedding"])
    heads = reading_heads()
    key, query = kernels(params, 0)
    words = (looked @ heads.words)[..., list(WORDS)].reshape(-1, len(WORDS))
    asked = table[list(WORDS)] @ query
    offered = soft.reshape(-1, soft.shape[-1]) @ key
    scores = offered @ asked.T
    for column in range(len(WORDS)):
        assert np.corrcoef(words[:, column], scores[:, column])[0, 1] > 0.5


def kernels(params: Any, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Key and query kernel of a decoder layer, stacked or not."""
    decoder = params["decoder"]
    if "layers" in decoder:
        attention = jax.tree.map(lambda x: x[layer], decoder["layers"]["attention"])
    else:
        attention = decoder[f"layers_{layer}"]["attention"]
    return np.asarray(attention["key"]["kernel"]), np.asarray(attention["query"]["kernel"])


def test_keys_are_queries_turned_back(grounded):
    _, params, _ = grounded
    pairs = [kernels(params, layer) for layer in (0, 1)]
    turns = [np.linalg.solve(query.T, key.T).T for key, query in pairs]
    np.testing.assert_allclose(turns[0] @ turns[0].T, np.eye(64), atol=1e-3)
    np.testing.assert_allclose(turns[0], turns[1], atol=1e-3)


def test_location_tokens_are_sums_of_their_column_and_row(grounded):
    _, params, _ = grounded
    table = np.asarray(params["decoder"]["token_embedding"])
    cells = table[FIRST_LOCATION : FIRST_LOCATION + GRID_SIZE**2].reshape(GRID_SIZE, GRID_SIZE, -1)
    np.testing.assert_allclose(np.linalg.norm(cells, axis=-1), 1.0, atol=1e-4)
    steps_right = cells[:, 1:] - cells[:, :-1]
    np.testing.assert_allclose(steps_right, steps_right[:1].repeat(GRID_SIZE, 0), atol=1e-5)
    steps_down = cells[1:] - cells[:-1]
    np.testing.assert_allclose(steps_down, steps_down[:, :1].repeat(GRID_SIZE, 1), atol=1e-5)


def test_only_what_it_says_is_changed(grounded):
    fresh, params, _ = grounded
    before, after = flatten(fresh), flatten(params)
    assert {path: leaf.shape for path, leaf in before.items()} == {
        path: leaf.shape for path, leaf in after.items()
    }
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    layers = {path.split("/")[1] for path in before if path.startswith("decoder/layers")}
    assert changed == {
        "vision/position_embedding",
        "vision/patch_embedding/kernel",
        "resampler/latents",
        "resampler/projection/kernel",
        "resampler/projection/bias",
        *(f"resampler/attention/{name}/{part}" for name in ("query", "key", "value", "out")
          for part in ("kernel", "bias")),
        "decoder/token_embedding",
        *(f"decoder/{layer}/attention/{name}/kernel" for layer in layers
          for name in ("query", "key")),
    }  # fmt: skip


def test_codes_tell_places_apart():
    codes = place_codes(GRID, 64)
    assert codes.shape == (GRID**2, 64) and codes.dtype == np.float32
    assert not codes[:, :32].any(), "the first half of the channels is for contents"
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
    assert (distances + 10 * np.eye(GRID**2)).min() > 1.0


def test_latents_must_form_a_square(grounded):
    _, params, states = grounded
    config = CONFIG.replace(resampler={"num_latents": 15})
    with pytest.raises(ConfigError, match="square number of latents, not 15"):
        ground(params, config, jax.random.key(0), states, reading_heads(), FIRST_LOCATION)
