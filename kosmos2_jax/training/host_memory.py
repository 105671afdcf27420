"""Memory of the host between the updates of a training on CPU."""

from __future__ import annotations

import ctypes

import jax

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Lets an update on CPU work in the memory that the one before has left.

    XLA allocates the temporary arrays of an execution as one block and frees it afterwards. glibc
    takes large blocks from the system and gives them back, so that at every update the kernel has
    to find and clear each of their pages anew, which is a fifth of a training step. Here glibc is
    told to keep what is freed, and XLA to execute on the thread that calls it: blocks too large for
    the arenas of other threads are given back whatever is said. That thread must be the main one,
    and the arguments be there already, else another executes when they are; see
    `kosmos2_jax.training.processes.global_batch`. The process then stays as large as it once was.

    For programs that are one process, at their beginning, before JAX looks for its devices. On
    other hardware, and on systems without glibc, memory is treated as usual.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # read when the backend starts
    libc = ctypes.CDLL(None)
    if jax.default_backend() == "cpu" and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
