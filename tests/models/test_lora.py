"""Adapters of linear layers: where they are, what they add, and how they are merged."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.kosmos2 import Kosmos2, initial_params
from kosmos2_jax.models.lora import (
    LoraConfig,
    add_adapters,
    is_adapter,
    merge_adapters,
    with_adapters,
)

EVERYWHERE = LoraConfig(rank=2, alpha=6.0, targets=".*")


def boxed_with(config, lora):
    key = jax.random.key(0)
    return add_adapters(initial_params(config, key), lora, key)


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "stacked"])
def config(request):
    return preset("tiny").replace(
        vision={"num_layers": 1}, decoder={"num_layers": 2}, scan_layers=request.param
    )


@pytest.fixture(scope="module")
def fresh(config):
    """Parameters by path, with adapters everywhere."""
    params = jax.jit(lambda: nn.meta.unbox(boxed_with(config, EVERYWHERE)))()
    return flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def params(fresh):
    """The same with another B."""
    rng = np.random.default_rng(0)
    changed = {
        path: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), jnp.float32)
        for path, leaf in fresh.items()
        if path.endswith("/lora_b")
    }
    return unflatten_dict(fresh | changed, sep="/")


@pytest.fixture(scope="module")
def inputs():
    """Arguments of `Kosmos2.hidden`: one row with one picture of five soft tokens."""
    rng = np.random.default_rng(1)
    slots = np.full((1, 9), -1, np.int32)
    slots[:, 2:7] = np.arange(5)
    tokens = rng.integers(4, 100, (1, 9)).astype(np.int32)
    positions = np.arange(9, dtype=np.int32)[None]
    images = rng.normal(size=(1, 1, 28, 28, 3)).astype(np.float32)
    arrays = tokens, positions, np.ones((1, 9), np.int32), images, slots
    return jax.tree.map(jnp.asarray, arrays)


def make_hidden(config, lora=None, **rngs):
    """Compiles `params, inputs -> hidden states`."""

    def apply(params, inputs):
        return Kosmos2(config).apply(
            {"params": params}, *inputs, deterministic=not rngs, rngs=rngs, method="hidden"
        )

    return jax.jit(with_adapters(apply, lora or LoraConfig()))


@pytest.fixture(scope="module")
def adapted(config, params, inputs):
    """Hidden states with the adapters."""
    return make_hidden(config, EVERYWHERE)(params, inputs)


def test_every_linear_layer_can_have_one(fresh):
    linear = {p.rpartition("/")[0] for p in fresh if p.endswith("/kernel") and "patch" not in p}
    assert {path.rpartition("/")[0] for path in fresh if is_adapter(path)} == linear
    for module in linear:
        *stack, inputs, outputs = fresh[f"{module}/kernel"].shape
        a, b = fresh[f"{module}/lora_a"], fresh[f"{module}/lora_b"]
        assert (a.shape, b.shape) == ((*stack, inputs, 2), (*stack, 2, outputs))
        assert 0.3 * inputs**-0.5 < np.abs(a).max() <= inputs**-0.5
        assert not b.any()


def test_they_lie_on_the_mesh_as_their_kernels_do(config):
    boxed = jax.eval_shape(lambda: boxed_with(config, LoraConfig(rank=2, targets=".*/up")))
    layer = boxed["decoder"]["layers" if config.scan_layers else "layers_0"]["mlp"]["up"]
    stack = ("layers",) if config.scan_layers else ()
    assert layer["lora_a"].names == (*stack, "embed", None)
    assert layer["lora_b"].names == (*stack, None, "mlp")


def test_merged_kernels_compute_the_same(config, params, inputs, adapted):
    plain = make_hidden(config)
    merged = plain(merge_adapters(params, EVERYWHERE.scale), inputs)
    np.testing.assert_allclose(adapted, merged, rtol=0, atol=2e-5)
    without = plain(merge_adapters(params, 0.0), inputs)
    assert np.abs(adapted - without).max() > 0.1


def test_dropout_is_of_the_adapters_input_and_of_training_alone(config, params, inputs, adapted):
    silent = config.replace(decoder={"dropout": 0.0}, resampler={"attention_dropout": 0.0})
    dropping = LoraConfig(rank=2, alpha=6.0, targets=".*", dropout=0.5)
    np.testing.assert_array_equal(make_hidden(silent, dropping)(params, inputs), adapted)
    found = make_hidden(silent, dropping, dropout=jax.random.key(1))(params, inputs)
    assert np.abs(found - adapted).max() > 0.1


def test_recomputed_layers_give_adapters_the_same_gradient(config, params, inputs):
    lora = LoraConfig(rank=2, alpha=6.0, targets=".*", dropout=0.5)

    flat = flatten_dict(params, sep="/")
    adapters = {path: leaf for path, leaf in flat.items() if is_adapter(path)}

    def gradient(remat):
        def loss(adapters):  # which alone are trained
            hidden = make_hidden(config.replace(remat=remat), lora, dropout=jax.random.key(1))
            return (hidden(unflatten_dict(flat | adapters, sep="/"), inputs) ** 2).mean()

        return jax.jit(jax.grad(loss))(adapters)

    plain, recomputed = gradient("none"), gradient("full")
    for path in plain:
        scale = float(jnp.abs(plain[path]).max())
        assert scale > 0, path
        np.testing.assert_allclose(recomputed[path], plain[path], rtol=0, atol=1e-5 * scale)


def test_targets_that_fit_nothing_or_some_stacked_layers_are_named(config):
    lora = LoraConfig(rank=2, targets="decoder/attention/query")
    with pytest.raises(ConfigError, match=r"matches no linear layer; .*layers\.\*/attention/key"):
        jax.eval_shape(lambda: boxed_with(config, lora))
    lora = LoraConfig(rank=2, targets="decoder/layers_1/mlp/up")
    if config.scan_layers:
        with pytest.raises(ConfigError, match="some layers only.*scan_layers"):
            jax.eval_shape(lambda: boxed_with(config, lora))
    else:
        flat = flatten_dict(jax.eval_shape(lambda: boxed_with(config, lora)), sep="/")
        chosen = {path.rpartition("/")[0] for path in flat if is_adapter(path)}
        assert chosen == {"decoder/layers_1/mlp/up"}


@pytest.mark.parametrize("setting", [{"rank": -1}, {"dropout": 1.0}, {"targets": "("}])
def test_bad_settings_are_named(setting):
    with pytest.raises(ConfigError, match=f"lora.{next(iter(setting))}"):
        LoraConfig(**setting)
