"""xPos acts, depends on distances alone, and equals a literal restatement of its formula."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.interop.layout import stack_layers
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.positions import apply_xpos

PICTURE = 0
_queries = jax.jit(functools.partial(apply_xpos, is_key=False))
_keys = jax.jit(functools.partial(apply_xpos, is_key=True))


def products(query: np.ndarray, key: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Scores of every query with every key, [H, Q, K], from [L, H, D] and positions [L]."""
    q = np.asarray(_queries(query[None], positions[None])[0], np.float64)
    k = np.asarray(_keys(key[None], positions[None])[0], np.float64)
    return np.einsum("qhd,khd->hqk", q, k)


def restated(x: np.ndarray, positions: np.ndarray, window: int, sign: int) -> np.ndarray:
    """Spec 1.5 word by word, in float64, with the published code's centring on the window."""
    length, heads, dim = x.shape
    out = np.empty((length, heads, dim))
    for i, t in enumerate(positions):
        for k in range(dim // 2):
            scale = (2 * k + 0.4 * dim) / (1.4 * dim)
            factor = scale ** (sign * (t - window // 2) / 512)
            angle = t * 10000.0 ** (-k / (dim // 2))
            even, odd = x[i, :, 2 * k].astype(float), x[i, :, 2 * k + 1].astype(float)
            out[i, :, 2 * k] = (even * np.cos(angle) - odd * np.sin(angle)) * factor
            out[i, :, 2 * k + 1] = (odd * np.cos(angle) + even * np.sin(angle)) * factor
    return out


@pytest.mark.parametrize("dim", [8, 64])
def test_equals_a_literal_restatement(dim, rng):
    positions = np.array([0, 1, 2, 3, 17, 100, 511, 1023, 1500, 2047])
    query, key = rng.normal(size=(2, len(positions), 3, dim)).astype(np.float32)
    expected = np.einsum(
        "qhd,khd->hqk",
        restated(query, positions, 2048, 1),
        restated(key, positions, 2048, -1),
    )
    found = products(query, key, positions)
    # Scores of a query with earlier keys, which are the ones that count; later ones are masked.
    earlier = np.tril(np.ones(found.shape[1:], bool))
    np.testing.assert_allclose(found[:, earlier], expected[:, earlier], rtol=0, atol=2e-3)
    near = earlier & (positions[:, None] < 512)
    np.testing.assert_allclose(found[:, near], expected[:, near], rtol=0, atol=3e-4)


@pytest.mark.parametrize("shift", [1, 7, 500])
def test_products_depend_on_the_distance_alone(shift, rng):
    length = 24
    query, key = rng.normal(size=(2, length, 2, 16)).astype(np.float32)
    here = products(query, key, np.arange(length))
    there = products(query, key, np.arange(length) + shift)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-3)
    assert np.abs(products(query, key, np.arange(length) * 2) - here).max() > 1.0


def test_length_of_products_fades_at_the_scale_of_each_pair():
    """At distance 512 pair k has the weight (2k + 0.4 D) / (1.4 D)."""
    dim, place = 64, np.array([512, 0])
    for k in (0, 5, 31):
        pair = np.zeros((2, 1, dim), np.float32)
        pair[:, :, 2 * k] = 1.0
        turned = pair.copy()
        turned[:, :, 2 * k : 2 * k + 2] = turned[:, :, [2 * k + 1, 2 * k]]
        weight = np.hypot(
            products(pair, pair, place)[0, 0, 1], products(turned, pair, place)[0, 0, 1]
        )
        assert weight == pytest.approx((2 * k + 0.4 * dim) / (1.4 * dim), rel=1e-4)


@pytest.fixture(scope="module")
def logits(tiny_reference, make_batch):
    """`(position, batch, positions)` to scores of the random tiny model."""
    params = tiny_reference.params

    @functools.cache
    def compiled(position: str):
        config = tiny_reference.config.replace(decoder={"position": position}, scan_layers=True)
        stacked = stack_layers(params, config)
        return functools.partial(jax.jit(Kosmos2(config).apply), {"params": stacked})

    def run(position: str, batch, positions: np.ndarray) -> np.ndarray:
        tokens, _, *rest = batch.inputs()
        return np.asarray(compiled(position)(tokens, jnp.asarray(positions), *rest))

    return run


def test_it_acts(tiny_reference, make_batch, logits):
    """Scores change when tokens move apart, and are not those of sinusoids."""
    batch = make_batch(tiny_reference.config, [(PICTURE, 9)])
    xpos = logits("xpos", batch, batch.positions)
    assert np.abs(logits("xpos", batch, batch.positions * 3) - xpos).max() > 0.1
    assert np.abs(logits("xpos", batch, batch.positions * 0) - xpos).max() > 0.1
    assert np.abs(logits("sinusoidal", batch, batch.positions) - xpos).max() > 0.1


def test_sinusoids_are_off(tiny_reference, make_batch, logits):
    """Moving the whole text changes nothing: no absolute position is left in the model."""
    batch = make_batch(tiny_reference.config, [(PICTURE, 9)])
    for position, largest in (("xpos", 1e-4), ("sinusoidal", None)):
        here = logits(position, batch, batch.positions)
        there = logits(position, batch, batch.positions + 40)
        if largest is None:
            assert np.abs(there - here).max() > 0.1
        else:
            np.testing.assert_allclose(there, here, rtol=0, atol=largest)


def test_keeps_the_dtype_of_its_input(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 2, 8)), jnp.bfloat16)
    assert _queries(x, jnp.arange(4)[None]).dtype == jnp.bfloat16
