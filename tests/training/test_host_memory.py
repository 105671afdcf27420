"""What is kept of the memory of an execution, counted by the kernel in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import jax
import numpy as np
import pytest

from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training.processes import global_batch

PAGES = 20_000  # of 4 KiB each; more than the arena of a thread can hold
EXECUTIONS = 9

PROGRAM = f"""
import resource, sys
import jax, jax.numpy as jnp
from kosmos2_jax.training.host_memory import keep_memory

if sys.argv[1] == "kept":
    keep_memory()

@jax.jit
def work(x):  # has at least PAGES of temporary memory
    numbers = jnp.arange({PAGES * 1024}, dtype=jnp.float32).reshape(-1, 1024) * x
    return jnp.cumsum(numbers, axis=0)[-1]

for _ in range({EXECUTIONS}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work(2.0).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_an_execution_works_in_the_memory_of_the_one_before():
    def faults(mode: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        )
        # The first ones, and now and then one that finds a result not yet freed, take more memory.
        return statistics.median(map(int, done.stdout.split()))

    assert faults("kept") < PAGES / 10
    assert faults("as usual") >= PAGES


def test_a_batch_is_there_before_its_update_begins():
    # Else another thread would execute it, whose memory is not kept. JAX copies these numbers in
    # the background, as they are not in order.
    rows = {"x": np.zeros((4000, 4000), np.float32).T}
    batch = global_batch(rows, batch_sharding(make_mesh({"data": 1}, jax.devices()[:1])))
    assert batch["x"].is_ready()
