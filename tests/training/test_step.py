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
