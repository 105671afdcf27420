"""Dropout acts where the reference has it, and nowhere else (spec 1.3, 1.4, 1.7, trap T-28)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.interop.layout import stack_layers
from kosmos2_jax.models.attention import attend
from kosmos2_jax.models.decoder import DecoderAttention, DecoderMlp
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.positions import sinusoidal_embedding

PICTURE = 0
RATE = 0.25


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a submodule."""

    path: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass
class Trace:
    """All calls of the submodules that dropout is to follow, in order."""

    dropouts: list[Call] = dataclasses.field(default_factory=list)
    branches: list[Call] = dataclasses.field(default_factory=list)
    embedded: list[Call] = dataclasses.field(default_factory=list)

    def __call__(self, run: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        out = run(*args, **kwargs)
        if context.method_name == "__call__":
            kinds = {nn.Dropout: self.dropouts, DecoderAttention: self.branches}
            kinds[DecoderMlp] = self.branches
            first = out[0] if isinstance(out, tuple) else out
            if type(context.module) in kinds:
                call = Call(context.module.path, np.asarray(args[0]), np.asarray(first))
                kinds[type(context.module)].append(call)
        elif type(context.module) is Kosmos2 and context.method_name == "embed":
            self.embedded.append(Call(("embed",), np.asarray(args[0]), np.asarray(out)))
        return out


def training_config(config: Kosmos2Config, dropout: float, attention: float) -> Kosmos2Config:
    return config.replace(decoder={"dropout": dropout}, resampler={"attention_dropout": attention})


def noisy_pass(config: Kosmos2Config, params: Any, batch: Any) -> Callable[..., jax.Array]:
    """Random key to scores in training mode."""
    apply = jax.jit(functools.partial(Kosmos2(config).apply, deterministic=False))
    return lambda key: apply({"params": params}, *batch.inputs(), rngs={"dropout": key})


@pytest.fixture(scope="module")
def traced(tiny_reference, make_batch) -> tuple[Kosmos2Config, Trace]:
    """A pass in training mode with a wide batch, to have many draws."""
    config = training_config(tiny_reference.config, RATE, 0.0)
    trace = Trace()
    batch = make_batch(config, [(PICTURE, 40)] * 4)
    with nn.intercept_methods(trace):
        Kosmos2(config).apply(
            {"params": tiny_reference.params},
            *batch.inputs(),
            deterministic=False,
            rngs={"dropout": jax.random.key(0)},
        )
    return config, trace


def test_embeddings_once_then_each_branch_once(traced):
    config, trace = traced
    paths = [call.path for call in trace.dropouts]
    expected = [("decoder",)]
    for i in range(config.decoder.num_layers):
        expected += [("decoder", f"layers_{i}")] * 2
    assert [path[:-1] for path in paths] == expected
    inputs = [call.x for call in trace.dropouts[1:]]
    assert len(inputs) == len(trace.branches)
    for x, branch in zip(inputs, trace.branches, strict=True):
        np.testing.assert_array_equal(x, branch.y)


def test_embedding_dropout_follows_scale_and_positions(traced):
    config, trace = traced
    dim = config.decoder.hidden_size
    embedded = trace.embedded[0].y
    positions = jnp.broadcast_to(jnp.arange(embedded.shape[1]), embedded.shape[:2])
    expected = embedded * dim**0.5 + np.asarray(sinusoidal_embedding(positions, dim))
    np.testing.assert_allclose(trace.dropouts[0].x, expected, rtol=1e-5, atol=1e-5)


def test_values_are_dropped_or_scaled_up(traced):
    _, trace = traced
    for call in trace.dropouts:
        dropped = call.y == 0
        assert dropped.mean() == pytest.approx(RATE, abs=0.03)
        np.testing.assert_allclose(call.y[~dropped], call.x[~dropped] / (1 - RATE), rtol=1e-5)


def test_masks_are_independent(traced):
    _, trace = traced
    masks = [(call.y == 0).reshape(-1) for call in trace.dropouts]
    for i, first in enumerate(masks):
        for second in masks[i + 1 :]:
            assert (first & second).mean() == pytest.approx(RATE**2, abs=0.02)


def test_attention_dropout_is_of_the_probabilities(rng):
    """Each kept probability is scaled up; the mean over many draws is that without dropout."""
    query, key = (jnp.asarray(rng.normal(size=(1, n, 2, 8)), jnp.float32) for n in (3, 8))
    units = jnp.broadcast_to(jnp.eye(8)[None, :, None], (1, 8, 2, 8))
    plain = np.asarray(attend(query, key, units))
    keys = jax.random.split(jax.random.key(0), 2000)
    drop = jax.jit(jax.vmap(lambda k: attend(query, key, units, dropout_rate=RATE, dropout_key=k)))
    draws = np.asarray(drop(keys))
    kept = draws != 0
    assert kept.mean() == pytest.approx(1 - RATE, abs=0.01)
    scaled = np.broadcast_to(plain / (1 - RATE), draws.shape)
    np.testing.assert_allclose(draws[kept], scaled[kept], rtol=1e-4)
    np.testing.assert_allclose(draws.mean(0), plain, atol=0.03)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    "dropout, attention", [(RATE, 0.0), (0.0, RATE)], ids=["decoder", "resampler"]
)
def test_seeds_repeat_and_deterministic_mode_is_silent(
    dropout, attention, scan_layers, tiny_reference, make_batch, our_logits
):
    config = training_config(tiny_reference.config, dropout, attention)
    params = tiny_reference.params
    if scan_layers:
        config = config.replace(scan_layers=True)
        params = stack_layers(params, config)
    batch = make_batch(config, [(2, PICTURE, 4)])
    noisy = noisy_pass(config, params, batch)
    first, again, other = (np.asarray(noisy(jax.random.key(seed))) for seed in (0, 0, 1))
    quiet = our_logits(config, params, batch)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - quiet).max() > 0.1
    if attention:  # before the first picture nothing is dropped: the decoder has no other dropout
        np.testing.assert_allclose(first[:, :3], quiet[:, :3], atol=1e-5)


def test_no_dropout_at_rate_zero(tiny_reference, make_batch, our_logits):
    """Training mode equals deterministic mode; the vision tower never drops anything."""
    config = training_config(tiny_reference.config, 0.0, 0.0)
    batch = make_batch(config, [(PICTURE, 4)])
    noisy = noisy_pass(config, tiny_reference.params, batch)(jax.random.key(0))
    quiet = our_logits(config, tiny_reference.params, batch)
    np.testing.assert_allclose(noisy, quiet, rtol=0, atol=1e-5)
