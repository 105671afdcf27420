"""Groups of parameters: who is in which, what is wrong with them, and what an update then does."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.interop.layout import nest, stack_layers, unstack_layers
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training.groups import ParameterGroup, find_groups
from kosmos2_jax.training.optimizer import OptimizerConfig, scale_by_group
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.state import (
    create_state,
    model_params,
    run_groups,
    state_shardings,
    with_params,
)
from kosmos2_jax.training.step import make_train_step

TINY = preset("tiny").replace(
    decoder={"dropout": 0.0, "num_layers": 2}, resampler={"attention_dropout": 0.0}
)
# As Kosmos-1 was pretrained: CLIP frozen but for its last layer.
KOSMOS_1 = {"vision": ParameterGroup(frozen=True), "vision_last_layer": ParameterGroup()}
GROUPS = {
    **KOSMOS_1,
    "second": ParameterGroup("decoder/layers_1", learning_rate_factor=0.5),
    "embeddings": ParameterGroup(frozen=True),
}
FROZEN = ("vision/layers_0/", "vision/p", "vision/class", "decoder/token")
ROWS, EMA = 8, 0.75


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "stacked"])
def shapes(request):
    """The tiny model's parameters in either layout."""
    config = TINY.replace(scan_layers=request.param)
    return nn.meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))


def test_the_smallest_group_that_matches_has_a_parameter(shapes):
    groups = find_groups(dict(reversed(GROUPS.items())), shapes)
    expected = {
        "decoder": 8_800,
        "embeddings": 120 * 32,
        "resampler": 5_184,
        "second": 8_736,
        "vision": 19_224,
        "vision_last_layer": 4_872,
    }
    assert dict(sorted(groups.sizes.items())) == expected
    assert list(groups.trained_settings) == ["decoder", "second", "resampler", "vision_last_layer"]


def test_the_table_says_what_is_trained_and_how(shapes):
    groups = find_groups({**KOSMOS_1, "embeddings": ParameterGroup("", 0.5, 0.0)}, shapes)
    table = {line.split()[0]: line.split()[1:] for line in groups.table(2e-4, 0.01).splitlines()}
    assert table["vision"] == ["19,224", "frozen"]
    assert table["embeddings"] == ["3,840", "0.0001", "0"]
    assert table["resampler"] == ["5,184", "0.0002", "0.01"]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"visoin": {}}, "visoin has no match.*did you mean vision"),
        ({"mine": {"match": "decoder/layer_1"}}, "mine matches no.*did you mean decoder/layers_1"),
        ({"mine": {"match": "decoder/(layers"}}, "mine.match .* no regular expression"),
        ({"vision": {"match": "decoder"}}, "vision has a match.*another name"),
        ({"a": {"match": ".*/bias"}, "b": {"match": ".*bias"}}, "groups a and b both match"),
        ({"vision": {}, "a": {"match": "vision/.*_?layers_.*"}, "b": {"match": "vision/[cp].*"}},
         "vision is left with no parameters"),
        ({"all": {"match": ".*", "frozen": True}}, "every parameter"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_groups_is_named(shapes, groups, words):
    config = OptimizerConfig(groups=groups)
    with pytest.raises(ConfigError, match=words) as error:
        find_groups(config.groups, shapes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("group", "words"),
    [({"frozn": True}, "optimizer.groups.vision.frozen"), ({"learning_rate_factor": -1}, "below")],
)
def test_bad_settings_of_a_group_are_named(group, words):
    with pytest.raises(ConfigError, match=words):
        OptimizerConfig(groups={"vision": group})


@pytest.fixture(scope="module")
def batch():
    """Rows with a picture of five soft tokens each."""
    rng = np.random.default_rng(0)
    slots = np.full((ROWS, 12), -1, np.int32)
    slots[:, 1:6] = np.arange(5)
    return {
        "tokens": rng.integers(4, 100, (ROWS, 12), np.int32),
        "targets": rng.integers(4, 100, (ROWS, 12), np.int32),
        "loss_weights": rng.uniform(0.1, 1.0, (ROWS, 12)).astype(np.float32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (ROWS, 1)),
        "segment_ids": np.ones((ROWS, 12), np.int32),
        "image_slots": slots,
        "images": rng.integers(0, 255, (ROWS, 1, 28, 28, 3)).astype(np.uint8),
    }


class Steps:
    """Updates by gradient descent.

    Attributes:
      state: the last one.
      states: parameters by path before and after each update.
      metrics: of the last update.
    """

    def __init__(self, groups=GROUPS, *, scan=False, mesh=None, micro_batches=1):
        self.run = RunConfig(
            model=TINY.replace(scan_layers=scan),
            optimizer=OptimizerConfig(groups=groups),
            ema_decay=EMA,
        )
        self.groups = run_groups(self.run)
        mesh = mesh or {"data": 1}
        self.mesh = make_mesh(mesh, jax.devices()[: math.prod(mesh.values())])
        # Adam would blow up the rounding of gradients near 0.
        optimizer = optax.chain(optax.trace(0.5), optax.scale(-0.1), scale_by_group(self.groups))
        self.shardings = state_shardings(self.run, optimizer, self.mesh)
        self.create = functools.partial(create_state, self.run, optimizer, self.shardings)
        self.step = make_train_step(
            Kosmos2Model(self.run.model).loss_fn,
            optimizer,
            self.shardings,
            batch_sharding(self.mesh),
            0,
            micro_batches,
            self.groups,
            EMA,
        )

    def flops(self, batch):
        """Of one update, as it is before the compiler looks at it."""
        return self.step.lower(jax.eval_shape(self.create), batch).cost_analysis()["flops"]

    def make(self, batch, start=None, updates=2):
        """Makes updates, from parameters by path or from fresh ones."""
        self.state = self.create()
        if start is not None:
            params = stack_layers(nest(start), self.run.model)
            params = jax.device_put(params, self.shardings.params)
            self.state = with_params(self.run, self.state, params)
        self.states = [self.unstacked(self.state.params)]
        batch = jax.device_put(batch, batch_sharding(self.mesh))
        for _ in range(updates):
            self.state, metrics = self.step(self.state, batch)
            self.states.append(self.unstacked(self.state.params))
        self.metrics = jax.device_get(metrics)
        return self

    def unstacked(self, params):
        return flatten_dict(unstack_layers(jax.device_get(params), self.run.model), sep="/")


@pytest.fixture(scope="module")
def unrolled(batch):
    return Steps().make(batch)


@pytest.fixture(scope="module")
def stacked(batch, unrolled):
    """From the same values, on four devices, in two micro-batches."""
    mesh = {"data": 2, "fsdp": 2}
    return Steps(scan=True, mesh=mesh, micro_batches=2).make(batch, unrolled.states[0])


def test_what_is_frozen_stays_to_the_bit_and_all_else_moves(unrolled, stacked):
    for steps in (unrolled, stacked):
        first, _, last = steps.states
        for path, value in first.items():
            same = np.array_equal(value.view(np.int32), last[path].view(np.int32))
            # The bias of keys has no gradient but for rounding.
            assert same == path.startswith(FROZEN) or "key/bias" in path, path


def test_frozen_parameters_have_no_state(unrolled, stacked):
    for steps in (unrolled, stacked):
        sizes = steps.groups.sizes
        trained = sum(sizes[name] for name in steps.groups.trained_settings)
        for tree in (steps.state.opt_state, steps.state.ema):
            assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == trained


def test_stacked_layers_in_micro_batches_on_four_devices_learn_the_same(unrolled, stacked):
    for path, value in unrolled.states[-1].items():
        np.testing.assert_allclose(stacked.states[-1][path], value, rtol=1e-4, atol=2e-5)


def test_nothing_is_computed_for_the_gradient_of_frozen_parameters(batch):
    """Of three passes of as many FLOPs, forward and two back, one and some are left."""
    groups = {
        "rest": ParameterGroup(".*", frozen=True),
        "last": ParameterGroup("decoder/final_norm"),
    }
    assert Steps(groups).flops(batch) < 0.5 * Steps({}).flops(batch)


def test_norms_of_groups_make_up_the_norm(unrolled, stacked):
    for steps in (unrolled, stacked):
        norms = {k: v for k, v in steps.metrics.items() if k.startswith("gradient_norm/")}
        assert {k.partition("/")[2] for k in norms} == set(steps.groups.trained_settings)
        total = math.sqrt(sum(float(norm) ** 2 for norm in norms.values()))
        assert total == pytest.approx(float(steps.metrics["gradient_norm"]), rel=1e-6)


def test_the_average_is_that_of_the_trained_parameters(unrolled, stacked):
    for steps in (unrolled, stacked):
        average = steps.unstacked(model_params(steps.run, steps.state))
        for path, first in steps.states[0].items():
            expected = first
            for after in steps.states[1:]:
                expected = EMA * expected + (1 - EMA) * after[path]
            np.testing.assert_allclose(average[path], expected, rtol=1e-6, atol=1e-7)
