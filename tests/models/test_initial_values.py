"""Fresh parameters are spread as the published code's (spec 1.10)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import Kosmos2Config, ResamplerConfig, preset
from kosmos2_jax.interop.layout import flatten, unstack_layers
from kosmos2_jax.models.initializers import magneto_gain
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.models.resampler import Resampler

CONFIG = preset("tiny").replace(
    vision={"hidden_size": 96, "mlp_dim": 160, "num_heads": 4, "num_layers": 1},
    resampler={"num_latents": 40},
    decoder={
        "hidden_size": 128, "mlp_dim": 192, "num_heads": 4, "num_layers": 2, "vocab_size": 300,
    },
)  # fmt: skip
LAYERS = range(CONFIG.decoder.num_layers)


@functools.cache
def compiled(config: Kosmos2Config) -> Callable[[jax.Array], Any]:
    return jax.jit(lambda key: nn.meta.unbox(initial_params(config, key)))


def fresh(config: Kosmos2Config, seed: int = 0) -> Mapping[str, Any]:
    params = compiled(config)(jax.random.key(seed))
    return flatten(jax.tree.map(np.asarray, unstack_layers(params, config)))


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def values(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    return fresh(CONFIG.replace(scan_layers=request.param))


def assert_uniform(values: np.ndarray, bound: float) -> None:
    """Within the bound, reaching it, and spread evenly as far as the number of values tells."""
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > bound * (1 - 20 / values.size)
    spread = bound / math.sqrt(3)
    assert values.std() == pytest.approx(spread, rel=5 / math.sqrt(values.size))


def assert_normal(values: np.ndarray, std: float) -> None:
    assert values.std() == pytest.approx(std, rel=5 / math.sqrt(values.size))
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert np.abs(values).max() > 2.2 * std  # no uniform reaches beyond 1.74


def test_gain_of_the_released_depth():
    assert magneto_gain(24) == pytest.approx(1.9675367876885788, rel=1e-12)


@pytest.mark.parametrize("part", ["kernel", "bias"])
@pytest.mark.parametrize(
    "name, fan_in, gained",
    [
        ("attention/query", 128, False),
        ("attention/key", 128, False),
        ("attention/value", 128, True),
        ("attention/out", 128, True),
        ("mlp/up", 128, True),
        ("mlp/down", 192, True),
    ],
)
def test_decoder_maps_have_torch_bounds_and_magneto_gains(values, name, fan_in, gained, part):
    gain = math.sqrt(math.log(2 * CONFIG.decoder.num_layers)) if gained else 1.0
    for layer in LAYERS:
        assert_uniform(values[f"decoder/layers_{layer}/{name}/{part}"], gain / math.sqrt(fan_in))


@pytest.mark.parametrize("part", ["kernel", "bias"])
@pytest.mark.parametrize(
    "name, fan_in",
    [
        ("attention/query", 96),
        ("attention/key", 96),
        ("attention/value", 96),
        ("attention/out", 96),
        ("mlp/up", 96),
        ("mlp/down", 160),
    ],
)
def test_vision_maps_have_torch_bounds(values, name, fan_in, part):
    for layer in range(CONFIG.vision.num_layers):
        assert_uniform(values[f"vision/layers_{layer}/{name}/{part}"], 1 / math.sqrt(fan_in))


def test_vision_embeddings(values):
    std = 96**-0.5
    assert_normal(values["vision/class_embedding"], std)
    assert_normal(values["vision/position_embedding"], std)
    assert_uniform(values["vision/patch_embedding/kernel"], 1 / math.sqrt(3 * 14 * 14))


def test_resampler(values):
    assert_normal(values["resampler/latents"], 1.0)
    for part in ("kernel", "bias"):
        assert_uniform(values[f"resampler/projection/{part}"], 1 / math.sqrt(96))
    xavier = math.sqrt(6 / (128 + 128))
    for name in ("query", "key", "value"):
        assert_uniform(values[f"resampler/attention/{name}/kernel"], xavier / math.sqrt(2))
        assert_uniform(values[f"resampler/attention/{name}/bias"], 1 / math.sqrt(128))
    assert_uniform(values["resampler/attention/out/kernel"], xavier)
    assert not values["resampler/attention/out/bias"].any()


def test_token_embedding(values):
    table = values["decoder/token_embedding"]
    assert not table[1].any()
    assert_normal(np.delete(table, 1, axis=0), 128**-0.5)


def test_norms_start_as_the_identity(values):
    scales = [path for path in values if path.endswith("/scale")]
    assert len(scales) == 2 + 2 * CONFIG.vision.num_layers + 4 * CONFIG.decoder.num_layers + 1
    for path in scales:
        assert (values[path] == 1).all()
        assert not values[path.replace("/scale", "/bias")].any()


def test_latents_may_start_smaller():
    resampler = Resampler(ResamplerConfig(40, latent_init_std=0.25), embed_dim=128, num_heads=4)
    params = resampler.init(jax.random.key(0), jnp.zeros((1, 2, 96)))["params"]
    assert_normal(np.asarray(nn.meta.unbox(params)["latents"]), 0.25)


def test_seeds():
    config = CONFIG.replace(scan_layers=True)
    first, again, other = fresh(config), fresh(config), fresh(config, seed=1)
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])
    assert (first["resampler/latents"] != other["resampler/latents"]).all()


def test_no_two_layers_start_equal(values):
    first, second = (values[f"decoder/layers_{layer}/mlp/up/kernel"] for layer in (0, 1))
    assert (first != second).mean() > 0.99
