"""The optimiser against a literal float64 restatement of the reference (spec 4.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from kosmos2_jax.training.groups import ParameterGroup, find_groups
from kosmos2_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)

from .reference_adam import ReferenceAdam

STEPS = 50
CONFIG = OptimizerConfig(learning_rate=2e-3, warmup_steps=5, total_steps=STEPS)
TOLERANCE = 1e-6  # relative to parameters of the size of 1; never to be relaxed


def test_the_first_update_has_rate_zero_and_the_last_ends_at_zero():
    reference, schedule = ReferenceAdam(2e-3, 5, STEPS, [], []), learning_rate_schedule(CONFIG)
    for update in range(STEPS + 1):
        assert float(schedule(update)) == pytest.approx(reference.rate(update), 1e-6, 1e-12)
    assert float(learning_rate_schedule(OptimizerConfig())(0)) == 0.0
    assert float(learning_rate_schedule(OptimizerConfig())(375)) == pytest.approx(2e-4)


def random_problem(shapes):
    """Parameters by path and gradients for every update, some long enough to be clipped."""
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    grads = [
        {path: scale * rng.normal(size=p.shape).astype(np.float32) for path, p in params.items()}
        for scale in rng.choice(np.float32([0.01, 0.3, 3.0]), STEPS)
    ]
    norms = [np.sqrt(sum((g**2).sum() for g in each.values())) for each in grads]
    assert min(norms) < CONFIG.clip_norm < max(norms)
    return params, grads


def our_run(config, params, all_grads):
    """The parameters after all updates, by path."""
    tree = unflatten_dict(jax.tree.map(jnp.asarray, params), sep="/")
    groups = find_groups(config.groups, tree)
    optimizer = make_optimizer(config, groups)
    trained = groups.trained(tree)
    state, update = optimizer.init(trained), jax.jit(optimizer.update)
    for grads in all_grads:
        updates, state = update(groups.trained(unflatten_dict(grads, sep="/")), state, trained)
        trained = optax.apply_updates(trained, updates)
    return flatten_dict(groups.merged(tree, trained), sep="/")


def test_fifty_updates_equal_the_reference():
    params, grads = random_problem({"vision/a": (40, 30), "decoder/norm/scale": (50,)})
    found = our_run(CONFIG, params, grads)
    reference = ReferenceAdam(2e-3, 5, STEPS, lr_scales=[1, 1], decays=[0.01, 0.01])
    expected = reference.run(list(params.values()), [list(g.values()) for g in grads])
    for path, theirs in zip(params, expected, strict=True):
        np.testing.assert_allclose(found[path], theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_fifty_updates_of_groups_equal_the_reference():
    """What is frozen has no part in clipping; stacked layers differ in rate and decay."""
    shapes = {
        "vision/layers/kernel": (4, 6, 5),
        "vision/pre_norm/scale": (30,),
        "decoder/token_embedding": (20, 8),
        "decoder/final_norm/scale": (8,),
    }
    params, grads = random_problem(shapes)
    groups = {
        "vision": ParameterGroup(frozen=True),
        "middle": ParameterGroup("vision/layers_[12]/.*", 0.1, weight_decay=0.0),
        "vision_last_layer": ParameterGroup(learning_rate_factor=0.5),
        "embeddings": ParameterGroup(weight_decay=0.2),
    }
    found = our_run(OptimizerConfig(2e-3, 5, STEPS, groups=groups), params, grads)

    def split(values):
        stack = values["vision/layers/kernel"]
        rest = [values["decoder/token_embedding"], values["decoder/final_norm/scale"]]
        return [stack[1:3], stack[3], *rest]

    reference = ReferenceAdam(2e-3, 5, STEPS, [0.1, 0.5, 1, 1], [0, 0.01, 0.2, 0.01])
    expected = reference.run(split(params), [split(g) for g in grads])
    for mine, theirs in zip(split(found), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    stack, before = found["vision/layers/kernel"], params["vision/layers/kernel"]
    np.testing.assert_array_equal(stack[0], before[0])
    np.testing.assert_array_equal(found["vision/pre_norm/scale"], params["vision/pre_norm/scale"])


def test_groups_that_nobody_looked_for_are_an_error():
    with pytest.raises(ValueError, match="find_groups"):
        make_optimizer(OptimizerConfig(groups={"vision": ParameterGroup(frozen=True)}))
