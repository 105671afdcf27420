"""Cross-entropy against torch's, and the bfloat16 model against the float32 one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.losses import (
    score_targets,
    tied_logits,
    token_losses,
    weighted_sums,
)

PICTURE = 0


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_token_losses_equal_torch(scale, rng):
    torch = pytest.importorskip("torch")
    logits = (scale * rng.normal(size=(3, 7, 50))).astype(np.float32)
    targets = rng.integers(0, 50, (3, 7)).astype(np.int32)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 50),
        torch.from_numpy(targets).long().reshape(-1),
        reduction="none",
    )
    found = jax.jit(token_losses)(logits, targets)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.reshape(-1), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_token_losses_of_bfloat16_scores_are_taken_in_float32(rng):
    logits = jnp.asarray(rng.normal(size=(2, 5, 40)), jnp.bfloat16)
    targets = jnp.zeros((2, 5), jnp.int32)
    expected = token_losses(logits.astype(jnp.float32), targets)
    np.testing.assert_array_equal(token_losses(logits, targets), expected)


@pytest.mark.parametrize("chunk", [1, 3, 8, 11, 12, 100])
def test_scores_in_chunks_equal_those_at_once(chunk, rng):
    hidden = jnp.asarray(rng.normal(size=(2, 11, 8)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(40, 8)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 40, (2, 11)), jnp.int32)
    weights = jnp.asarray(rng.random((2, 11)) * (rng.random((2, 11)) < 0.7), jnp.float32)

    def loss(hidden, table, chunk):
        scores = score_targets(hidden, table, targets, chunk)
        return jnp.sum(scores.losses * weights), scores

    take = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (expected, plain), plain_grads = take(hidden, table, 0)
    (found, scores), grads = jax.jit(take, static_argnums=2)(hidden, table, chunk)
    assert found == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(scores.losses, plain.losses, rtol=1e-5)
    np.testing.assert_array_equal(scores.best, plain.best)
    np.testing.assert_array_equal(plain.best, tied_logits(hidden, table).argmax(-1) == targets)
    for ours, theirs in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_chunks_take_a_fraction_of_the_memory_at_full_size():
    shapes = (
        jax.ShapeDtypeStruct((8, 2048, 2048), jnp.bfloat16),
        jax.ShapeDtypeStruct((65_037, 2048), jnp.float32),
    )
    targets = jax.ShapeDtypeStruct((8, 2048), jnp.int32)

    def peak(chunk: int) -> int:
        def loss(hidden, table, targets):
            return score_targets(hidden, table, targets, chunk).losses.sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(256) < peak(0) / 4


def test_mean_over_an_update_is_no_mean_of_means(rng):
    """Two batches with different numbers of targets (trap T-26)."""
    values = rng.normal(size=(2, 3, 4)).astype(np.float32)
    weights = np.zeros((2, 3, 4), np.float32)
    weights[0, 0, 0], weights[1] = 1.0, 1.0
    sums = [weighted_sums(jnp.asarray(values[i]), jnp.asarray(weights[i])) for i in (0, 1)]
    mean = sum(total for total, _ in sums) / sum(count for _, count in sums)
    expected = (values * weights).sum() / 13
    assert float(mean) == pytest.approx(float(expected), rel=1e-5)


def test_ignored_targets_have_no_gradient(rng):
    logits = jnp.asarray(rng.normal(size=(1, 4, 6)), jnp.float32)
    targets = jnp.zeros((1, 4), jnp.int32)
    weights = jnp.asarray([[1.0, 0.0, 1.0, 0.0]])
    gradient = jax.grad(lambda x: weighted_sums(token_losses(x, targets), weights)[0])(logits)
    assert np.abs(gradient[0, ::2]).min() > 0
    assert not np.asarray(gradient[0, 1::2]).any()


@pytest.mark.parametrize("position", ["sinusoidal", "xpos"])
def test_bfloat16_is_near_float32(position, tiny_reference, make_batch, our_logits):
    config = tiny_reference.config.replace(decoder={"position": position})
    batch = make_batch(config, [(PICTURE, 9), (3, PICTURE, 2)])
    exact = our_logits(config, tiny_reference.params, batch)
    half = config.replace(dtype="bfloat16")
    found = our_logits(half, tiny_reference.params, batch)
    assert found.dtype == np.float32
    real = batch.segment_ids > 0
    error = np.abs(found - exact)[real]
    assert 0 < error.mean() < 0.03 * exact[real].std()


def test_bfloat16_gradients_are_float32_and_near(make_reference, make_batch):
    tiny = preset("tiny")
    reference = make_reference(tiny.replace(vision={"num_layers": 1}, decoder={"num_layers": 1}))
    config = reference.config
    batch = make_batch(config, [(PICTURE, 9)])
    targets = np.roll(batch.tokens, -1, axis=1)

    def gradient(dtype: str) -> np.ndarray:
        model = Kosmos2(config.replace(dtype=dtype))

        @jax.jit
        @jax.grad
        def loss_gradient(params: Any, inputs: Any) -> jax.Array:
            return token_losses(
                model.apply({"params": params}, *inputs), jnp.asarray(targets)
            ).mean()

        found = loss_gradient(reference.params, batch.inputs())
        return found["decoder"]["token_embedding"]

    exact, half = gradient("float32"), gradient("bfloat16")
    assert half.dtype == jnp.float32
    assert np.abs(half - exact).max() < 0.1 * np.abs(exact).max()
