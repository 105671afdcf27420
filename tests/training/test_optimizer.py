"""The optimiser against a literal float64 restatement of the reference (spec 4.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)

CONFIG = OptimizerConfig(learning_rate=2e-3, warmup_steps=5, total_steps=40)


def reference_rate(update: int) -> float:
    """Linear from 0 to the peak at `warmup_steps`, linear to 0 at `total_steps`."""
    if update <= 5:
        return 2e-3 * update / 5
    return 2e-3 * (1 - (update - 5) / (40 - 5))


def test_the_first_update_has_rate_zero_and_the_last_ends_at_zero():
    schedule = learning_rate_schedule(CONFIG)
    for update in range(41):
        assert float(schedule(update)) == pytest.approx(reference_rate(update), rel=1e-6, abs=1e-12)
    assert float(learning_rate_schedule(OptimizerConfig())(0)) == 0.0
    assert float(learning_rate_schedule(OptimizerConfig())(375)) == pytest.approx(2e-4)


def test_forty_updates_equal_the_reference():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 3)), "b": {"norm": rng.normal(size=5)}}
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimizer = make_optimizer(CONFIG)
    state = optimizer.init(ours)
    leaves, structure = jax.tree.flatten(params)
    first = [np.zeros_like(x) for x in leaves]
    second = [np.zeros_like(x) for x in leaves]
    update = jax.jit(optimizer.update)
    for t in range(1, 41):
        # Some gradients are long enough to be clipped.
        grads = [rng.normal(size=x.shape) * rng.choice([0.01, 3.0]) for x in leaves]
        tree = jax.tree.unflatten(structure, [jnp.asarray(g, jnp.float32) for g in grads])
        updates, state = update(tree, state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = np.sqrt(sum((g**2).sum() for g in grads))
        grads = [g * min(1.0, 2.0 / (norm + 1e-6)) for g in grads]
        rate = reference_rate(t - 1)
        size = rate * np.sqrt(1 - 0.98**t) / (1 - 0.9**t)
        for i, g in enumerate(grads):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.98 * second[i] + 0.02 * g * g
            leaves[i] = leaves[i] - rate * 0.01 * leaves[i]
            leaves[i] = leaves[i] - size * first[i] / (np.sqrt(second[i]) + 1e-6)
    for mine, theirs in zip(jax.tree.leaves(ours), leaves, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-6)


def test_parts_learn_at_their_own_rate():
    params = {"vision": {"a": jnp.ones(2), "ab": jnp.ones(2)}, "decoder": jnp.ones(2)}
    plain = make_optimizer(CONFIG)
    scaled = make_optimizer(
        OptimizerConfig(2e-3, 5, 40, factors={"vision": 0.5, "vision/a": 0.0})
    )  # fmt: skip

    def second_update(optimizer):
        state = optimizer.init(params)
        _, state = optimizer.update(params, state, params)
        return optimizer.update(params, state, params)[0]

    expected, found = second_update(plain), second_update(scaled)
    np.testing.assert_array_equal(found["decoder"], expected["decoder"])
    np.testing.assert_array_equal(found["vision"]["ab"], expected["vision"]["ab"] * 0.5)
    assert not found["vision"]["a"].any()
    assert expected["vision"]["a"].all()


def test_a_part_that_is_not_there_is_named():
    optimizer = make_optimizer(OptimizerConfig(factors={"visoin": 0.1}))
    params = {"vision": jnp.ones(2), "decoder": jnp.ones(2)}
    with pytest.raises(ConfigError, match="visoin.*decoder, vision"):
        optimizer.update(params, optimizer.init(params), params)
