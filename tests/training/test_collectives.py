"""Counts of collectives in programs whose traffic is known beforehand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kosmos2_jax.partitioning import make_mesh
from kosmos2_jax.training.collectives import collectives_of


def program(function, mesh, *specs):
    """HLO of a function of float32[64, 64] arrays, compiled for the mesh."""
    shapes = [
        jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec in specs
    ]
    return jax.jit(function).lower(*shapes).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"fsdp": 4, "tensor": 2})


def test_a_sum_over_devices_in_a_loop_counts_each_round(mesh):
    def sums(x):
        def body(x, _):
            both = jax.lax.psum(x, "fsdp")
            return x + both, None

        return jax.lax.scan(body, x, None, length=5)[0]

    spec = PartitionSpec("fsdp", "tensor")
    run = jax.shard_map(sums, mesh=mesh, in_specs=spec, out_specs=spec)
    found = collectives_of(program(run, mesh, spec))
    assert list(found) == ["all-reduce"]
    traffic = found["all-reduce"]
    # Each device sends its 16 x 32 floats 2 * 3/4 times, five times over.
    assert (traffic.count, traffic.groups, traffic.at_least) == (5, (4,), False)
    assert traffic.sent == 5 * 16 * 32 * 4 * 2 * 3 / 4


def test_gathers_scatters_and_permutations(mesh):
    def exchange(x):
        whole = jax.lax.all_gather(x, "tensor", axis=1, tiled=True)
        part = jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.ppermute(part, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    run = jax.shard_map(
        exchange,
        mesh=mesh,
        in_specs=PartitionSpec("fsdp", "tensor"),
        out_specs=PartitionSpec("fsdp", None),
        check_vma=False,
    )
    found = collectives_of(program(run, mesh, PartitionSpec("fsdp", "tensor")))
    row = 16 * 64 * 4
    assert (found["all-gather"].count, found["all-gather"].groups) == (1, (2,))
    assert found["all-gather"].sent == row / 2
    assert found["reduce-scatter"].groups == (4,)
    assert found["reduce-scatter"].sent == row * 3 / 4
    assert found["collective-permute"].sent == row / 4


def test_a_program_of_one_device_sends_nothing():
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    assert collectives_of(program(jnp.sin, mesh, PartitionSpec())) == {}


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['axis_0'=16] {'axis_0'}", 16),
        ("mesh['a'=4,'b'=8] {'b'}", 8),
        ("mesh['a'=4,'b'=8] {'a','b'}", 32),
        ("mesh['a'=16] {'a':(4)2}", 2),
    ],
)
def test_every_way_of_writing_groups(groups, size):
    text = f"""ENTRY %main (p: f32[32]) -> f32[32] {{
  ROOT %all-gather.1 = bf16[64,32]{{1,0:T(8,128)(2,1)}} all-gather(%p), channel_id=1, \
replica_groups={groups}, dimensions={{0}}
}}
"""
    traffic = collectives_of(text)["all-gather"]
    assert traffic.groups == (size,)
    assert traffic.sent == 64 * 32 * 2 * (size - 1) // size
