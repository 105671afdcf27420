"""One update: micro-batches change nothing, on one device or on eight."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training.optimizer import OptimizerConfig, make_optimizer, updates_made
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.state import create_state, state_shardings
from kosmos2_jax.training.step import make_train_step

ROWS, LENGTH = 16, 12


@pytest.fixture(scope="module")
def batch():
    """Text rows with very different numbers of targets."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, LENGTH, ROWS)
    inside = np.arange(LENGTH) < lengths[:, None]
    weights = np.where(inside, rng.uniform(0.1, 1.0, (ROWS, LENGTH)), 0)
    return {
        "tokens": rng.integers(4, 100, (ROWS, LENGTH), np.int32),
        "targets": rng.integers(4, 100, (ROWS, LENGTH), np.int32),
        "loss_weights": weights.astype(np.float32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "segment_ids": inside.astype(np.int32),
    }


def two_updates(batch, mesh, micro_batches):
    """Parameters and metrics after two updates."""
    run = RunConfig(model=preset("tiny").replace(decoder={"dropout": 0.0}))
    optimizer = optax.sgd(0.1)  # Adam would blow up the rounding of gradients near 0
    mesh = make_mesh(mesh, jax.devices()[: math.prod(mesh.values())])
    shardings = state_shardings(run, optimizer, mesh)
    state = create_state(run, optimizer, shardings)
    loss_fn = Kosmos2Model(run.model).loss_fn
    step = make_train_step(loss_fn, optimizer, shardings, batch_sharding(mesh), 0, micro_batches)
    for _ in range(2):
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    return jax.device_get((state.params, metrics))


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_micro_batches_give_the_same_update(batch, micro_batches):
    params, metrics = two_updates(batch, {"data": 1}, 1)
    found, parts = two_updates(batch, {"data": 1}, micro_batches)
    for name, value in metrics.items():
        assert parts[name] == pytest.approx(value, rel=2e-6), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), found, params)


def test_each_device_splits_its_own_rows(batch):
    params, metrics = two_updates(batch, {"data": 1}, 1)
    found, parts = two_updates(batch, {"data": 2, "fsdp": 4}, 2)
    assert parts["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, params)


def test_updates_that_are_not_finite_change_nothing_but_the_step(batch):
    """With 1e25 the loss is finite, but not the sum of squares of its gradient."""
    run = RunConfig(model=preset("tiny").replace(decoder={"dropout": 0.0}))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0, total_steps=9))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    shardings = state_shardings(run, optimizer, mesh)
    loss_fn = Kosmos2Model(run.model).loss_fn

    def loss_of(params, batch, key):
        loss, sums = loss_fn(params, batch, key)
        return loss * batch["scale"][0], sums

    step = make_train_step(loss_of, optimizer, shardings, batch_sharding(mesh), 0)
    good, *spoilt = (
        {**batch, "scale": np.full(ROWS, scale, np.float32)} for scale in (1, np.nan, np.inf, 1e25)
    )

    def after(*batches):
        state, skipped = create_state(run, optimizer, shardings), []
        for each in batches:
            state, metrics = step(state, jax.device_put(each, batch_sharding(mesh)))
            skipped.append((int(metrics["skipped"]), int(metrics["skipped_in_row"])))
        return jax.device_get(state), skipped

    expected, _ = after(good, good)
    found, skipped = after(good, *spoilt, good)
    assert skipped == [(0, 0), (1, 1), (1, 2), (1, 3), (0, 0)]
    assert (int(found.step), updates_made(found.opt_state)) == (5, 2)
    jax.tree.map(
        np.testing.assert_array_equal,
        (found.params, found.opt_state),
        (expected.params, expected.opt_state),
    )
