"""Every implementation of attention against plain float32, and which one is taken where.

Pallas' kernels for TPU and GPU run here in Pallas' interpreter.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models import attention
from kosmos2_jax.models.attention import attend, choose

# Largest difference over largest value; kernels sum in another order, and take exp2.
TOLERANCE = 1e-5
# bfloat16 has 8 bits, and probabilities are rounded to it before or after their sum is divided by.
HALF_TOLERANCE = 2e-2


def literal(query, key, value, segment_ids, causal):
    """Attention as the textbook has it, in NumPy and float64."""
    batch, length, heads, dim = query.shape
    out = np.zeros((batch, length, heads, dim))
    for row in range(batch):
        for head in range(heads):
            scores = query[row, :, head] @ key[row, :, head].T / np.sqrt(dim)
            hidden = np.zeros((length, length), bool)
            if segment_ids is not None:
                hidden |= segment_ids[row][:, None] != segment_ids[row][None]
            if causal:
                hidden |= np.triu(np.ones((length, length), bool), 1)
            weights = np.exp(np.where(hidden, -np.inf, scores - scores.max()))
            out[row, :, head] = weights / weights.sum(-1, keepdims=True) @ value[row, :, head]
    return out.reshape(batch, length, -1)


def packed_rows(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Examples of random length, numbered from 1, and padding."""
    ids = np.zeros((rows, length), np.int32)
    for row in ids:
        cuts = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
        for number, (start, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True), 1):
            row[start:end] = number
    return ids


def inputs(rng, rows=2, length=150, heads=2, dim=64, dtype=jnp.float32):
    shape = (4, rows, length, heads, dim)
    return tuple(jnp.asarray(x, dtype) for x in rng.normal(size=shape))


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(implementation, causal, query, key, value, probe, segment_ids):
    """What attention gives, and the gradients of its product with `probe`."""

    def run(query, key, value):
        mixed = attend(
            query,
            key,
            value,
            segment_ids=segment_ids,
            causal=causal,
            implementation=implementation,
        )
        return jnp.sum(mixed * probe.reshape(mixed.shape)), mixed

    gradients, mixed = jax.grad(run, (0, 1, 2), has_aux=True)(query, key, value)
    return mixed, *gradients


def relative_difference(found, expected) -> float:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("implementation", ["xla", "splash", "triton"])
@pytest.mark.parametrize("kind", ["packed", "causal", "full"])
def test_values_and_gradients_equal_plain_float32(implementation, kind, rng):
    """150 tokens: more than one tile of the kernels, and not a multiple of it."""
    arrays = inputs(rng)
    ids = packed_rows(rng, 2, 150) if kind == "packed" else None
    causal = kind != "full"
    found = value_and_gradients(implementation, causal, *arrays, ids)
    exact = literal(*(np.asarray(x, np.float64) for x in arrays[:3]), ids, causal)
    assert relative_difference(found[0], exact) < TOLERANCE
    expected = value_and_gradients("xla", causal, *arrays, ids)
    for ours, plain in zip(found, expected, strict=True):
        assert relative_difference(ours, plain) < TOLERANCE


@pytest.mark.parametrize("kind", ["packed", "full"])
@pytest.mark.parametrize("cores", [1, 2])
def test_large_rows_are_attended_to_one_by_one(kind, cores, rng, monkeypatch):
    """Their heads in as many parts as there are cores."""
    monkeypatch.setattr(attention, "_BY_ROW", 0)
    monkeypatch.setattr(attention, "_BY_PART", 0)
    monkeypatch.setattr(attention.os, "cpu_count", lambda: cores)
    arrays = inputs(rng, rows=3, length=40)
    ids = packed_rows(rng, 3, 40) if kind == "packed" else None
    run = jax.jit(functools.partial(attend, causal=kind == "packed", implementation="xla"))
    assert " while(" in run.lower(*arrays[:3], segment_ids=ids).compile().as_text()
    exact = literal(*(np.asarray(x, np.float64) for x in arrays[:3]), ids, kind == "packed")
    assert relative_difference(run(*arrays[:3], segment_ids=ids), exact) < TOLERANCE
    found = value_and_gradients("xla", kind == "packed", *arrays, ids)
    monkeypatch.undo()
    value_and_gradients.clear_cache()
    expected = value_and_gradients("xla", kind == "packed", *arrays, ids)
    for ours, plain in zip(found, expected, strict=True):
        assert relative_difference(ours, plain) < TOLERANCE


@pytest.mark.parametrize("implementation", ["xla", "splash", "triton"])
def test_bfloat16_is_near_float32(implementation, rng):
    exact = inputs(rng)
    half = tuple(x.astype(jnp.bfloat16) for x in exact)
    ids = packed_rows(rng, 2, 150)
    found = value_and_gradients(implementation, True, *half, ids)
    expected = value_and_gradients("xla", True, *(x.astype(jnp.float32) for x in half), ids)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert relative_difference(ours, plain) < HALF_TOLERANCE


def mesh_of(**axes: int) -> Mesh:
    devices = np.asarray(jax.devices()[: int(np.prod(list(axes.values())))])
    return Mesh(
        devices.reshape(*axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
    )


@pytest.mark.parametrize("rows, heads", [(4, 2), (3, 1)], ids=["divided", "copied"])
def test_kernels_are_cut_over_the_mesh(rows, heads, rng):
    """Rows lie over data and fsdp, heads over tensor; what those do not divide is copied."""
    arrays = inputs(rng, rows, 128, heads)
    ids = packed_rows(rng, rows, 128)
    expected = value_and_gradients("xla", True, *arrays, ids)
    with jax.set_mesh(mesh_of(data=2, fsdp=2, tensor=2)):
        found = value_and_gradients("splash", True, *arrays, ids)
        program = value_and_gradients.lower("splash", True, *arrays, ids).as_text()
    for ours, plain in zip(found, expected, strict=True):
        assert relative_difference(ours, plain) < TOLERANCE
    cut = f"tensor<{rows // 4}x128x{heads // 2}x64xf32>"
    assert (cut in program) == (rows == 4)


@pytest.mark.parametrize(
    "platform, kind, dtype, segments, expected",
    [
        ("tpu", "TPU v5 lite", jnp.bfloat16, True, "splash"),
        ("tpu", "TPU v4", jnp.float32, False, "splash"),
        ("tpu", "TPU v3", jnp.bfloat16, True, "xla"),
        ("gpu", "NVIDIA H200", jnp.bfloat16, True, "triton"),
        ("gpu", "NVIDIA H200", jnp.bfloat16, False, "cudnn"),
        ("gpu", "NVIDIA H200", jnp.float32, False, "xla"),
        ("cpu", "cpu", jnp.bfloat16, True, "xla"),
    ],
)
def test_choice_follows_the_ambient_mesh(platform, kind, dtype, segments, expected):
    """The mesh may be of devices that only the compiler knows."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    mesh = jax.sharding.AbstractMesh((8,), ("fsdp",), (AxisType.Auto,), abstract_device=device)
    ids = jnp.zeros((2, 257), jnp.int32) if segments else None
    with jax.sharding.use_abstract_mesh(mesh):
        assert choose(jnp.zeros((2, 257, 16, 64), dtype), ids) == expected
        assert choose(jnp.zeros((2, 257, 16, 8), dtype), ids) == "xla"
        assert choose(jnp.zeros((2, 20, 16, 64), dtype), None) == "xla"


def test_triton_is_lowered_for_gpus(rng):
    """As far as a machine without a GPU can go: Triton's code is made, not compiled."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("fsdp",), (AxisType.Auto,), abstract_device=device)
    arrays = inputs(rng, dtype=jnp.bfloat16)
    ids = packed_rows(rng, 2, 150)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = value_and_gradients.trace("auto", True, *arrays, ids)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mha_forward" in program and "mha_backward" in program


def test_cudnn_without_a_gpu_is_an_error(rng):
    arrays = inputs(rng, length=8, dtype=jnp.bfloat16)
    with pytest.raises(ConfigError, match="'cudnn' cannot compute in bfloat16 on cpu"):
        attend(*arrays[:3], implementation="cudnn")


def test_unknown_attention_is_an_error():
    with pytest.raises(ConfigError, match="did you mean splash"):
        preset("tiny").replace(attention="spash")
