"""Each part on its own against the same part of transformers' Kosmos-2, every tensor random."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.models.decoder import Context, DecoderLayer
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.positions import FIRST_ROW, sinusoidal_embedding
from kosmos2_jax.models.resampler import Resampler
from kosmos2_jax.models.vision_transformer import VisionLayer, VisionTransformer

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4  # absolute, at values of order 1; never to be relaxed
PICTURE = 0


def _states(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _pixels(rng: np.random.Generator, size: int) -> np.ndarray:
    return _states(rng, 2, size, size, 3)


def _torch_pixels(pixels: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _reference_features(model: Any, pixels: np.ndarray) -> Any:
    """What transformers' model feeds its resampler."""
    states = model.vision_model(pixel_values=_torch_pixels(pixels)).last_hidden_state
    return torch.nn.functional.normalize(model.vision_model.model.post_layernorm(states), dim=-1)


@torch.no_grad()
def test_vision_features(shape, make_reference, rng):
    reference = make_reference(shape)
    pixels = _pixels(rng, shape.vision.image_size)
    expected = _reference_features(reference.model, pixels).numpy()
    vision = VisionTransformer(shape.vision)
    found = jax.jit(vision.apply)({"params": reference.params["vision"]}, pixels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_each_vision_layer(shape, make_reference, rng):
    reference = make_reference(shape)
    x = _states(rng, 2, shape.vision.num_tokens, shape.vision.hidden_size)
    layer = jax.jit(VisionLayer(shape.vision, jnp.float32).apply)
    for i, theirs in enumerate(reference.model.vision_model.model.encoder.layers):
        expected = theirs(torch.from_numpy(x), None)
        found, _ = layer({"params": reference.params["vision"][f"layers_{i}"]}, x, None)
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_resampler_output_and_attention(shape, make_reference, resampler_attention, rng):
    reference = make_reference(shape)
    heads = shape.decoder.num_heads
    features = _states(rng, 2, shape.vision.num_tokens, shape.vision.hidden_size)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    projection = reference.model.image_to_text_projection
    expected, expected_map = projection(torch.from_numpy(features))
    params = reference.params["resampler"]
    resampler = Resampler(shape.resampler, shape.decoder.hidden_size, heads)
    found = jax.jit(resampler.apply)({"params": params}, features)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE)
    found_map = resampler_attention(resampler, params, features)
    assert expected_map.std() > 0.01 or expected_map.shape[-1] == 1
    np.testing.assert_allclose(found_map, expected_map.numpy(), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_each_decoder_layer(shape, make_reference, rng):
    reference = make_reference(shape)
    length = 13
    x = _states(rng, 2, length, shape.decoder.hidden_size)
    ones = jnp.ones((2, length), jnp.int32)
    context = Context(jnp.cumsum(ones, axis=1) - 1, ones)
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    layer = jax.jit(DecoderLayer(shape.decoder, jnp.float32, True).apply)
    for i, theirs in enumerate(reference.model.text_model.model.layers):
        expected = theirs(torch.from_numpy(x), causal[None, None].expand(2, 1, -1, -1))
        params = reference.params["decoder"][f"layers_{i}"]
        found, _ = layer({"params": params}, x, None, context)
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_hidden_states_of_a_whole_pass(tiny_reference, make_batch):
    """Every decoder layer's output inside the model, pictures spliced in, and the final norm."""
    config = tiny_reference.config
    batch = make_batch(config, [(2, PICTURE, 6)])
    inputs = batch.reference_inputs([0])
    expected = tiny_reference.model(**inputs, output_hidden_states=True).hidden_states
    assert len(expected) == config.decoder.num_layers + 1  # the input, and each layer's output

    apply = functools.partial(
        Kosmos2(config).apply, capture_intermediates=True, mutable=["intermediates"]
    )
    _, states = jax.jit(apply)({"params": tiny_reference.params}, *batch.inputs())
    states = states["intermediates"]["decoder"]
    layers = [states[f"layers_{i}"]["__call__"][0][0] for i in range(config.decoder.num_layers)]
    for i, found in enumerate(layers[:-1]):
        np.testing.assert_allclose(found, expected[i + 1].numpy(), rtol=0, atol=TOLERANCE)
    # Instead of the last layer's output transformers gives the final norm's.
    final = states["final_norm"]["__call__"][0]
    np.testing.assert_allclose(final, expected[-1].numpy(), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_picture_vectors(tiny_reference, make_batch):
    """Pixels to the soft tokens that are spliced into the text."""
    config = tiny_reference.config
    batch = make_batch(config, [(PICTURE, 2, PICTURE)])
    expected = tiny_reference.model(**batch.reference_inputs([0])).image_embeds
    encode = jax.jit(lambda p, x: Kosmos2(config).apply({"params": p}, x, method="encode_images"))
    found = encode(tiny_reference.params, batch.images)
    np.testing.assert_allclose(found, expected.reshape(found.shape).numpy(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dim", [16, 128, 2048])
def test_sinusoids_equal_the_reference_table(dim):
    """4,096 positions, twice what the released model was trained on."""
    from transformers.models.kosmos2.modeling_kosmos2 import (
        Kosmos2TextSinusoidalPositionalEmbedding as Table,
    )

    count = 4096
    table = Table.get_embedding(count + FIRST_ROW, dim, padding_idx=1).numpy()
    found = jax.jit(lambda p: sinusoidal_embedding(p, dim))(jnp.arange(count)[None])[0]
    np.testing.assert_allclose(found, table[FIRST_ROW:], rtol=0, atol=1e-5)
