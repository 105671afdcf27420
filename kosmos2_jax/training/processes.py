"""Several processes that train one model together: who reads what, who writes, when to stop.

All of them run the same program. Process 0 writes the files of a run; checkpoints are written by
all. Small messages go through the coordination service of `jax.distributed`, not through the
devices, so that they neither wait for updates under way nor hold them up.

That service also ends a process within a minute of the death of another one, even if it is waiting
in a collective operation: jaxlib's client aborts the program when the service says that a process
has not been heard of for `HEARTBEAT_TIMEOUT` seconds, or when the service itself is gone.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # its client has no public name; Orbax takes it from here too
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kosmos2_jax.errors import ConfigError, Kosmos2Error
from kosmos2_jax.training.signals import EXIT_RESTART

_T = TypeVar("_T")

# Seconds; with the time until it is noticed, half a minute is left of the one promised.
HEARTBEAT_TIMEOUT = 30
# Data preparation by process 0 may take hours, and whether it is alive is told by heartbeats.
_PATIENCE_MS = 7 * 24 * 3600 * 1000
# Updates between a signal and the answer of all: their devices stay busy meanwhile.
_LAG = 2
_calls = itertools.count()


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """How the processes of a run find one another.

    Attributes:
      coordinator: HOST:PORT of process 0; empty for what `jax.distributed.initialize` finds out on
        Cloud TPU, Slurm, Kubernetes and Open MPI, and so for the other two.
      num_processes: how many there are.
      process_id: which this one is, from 0.
    """

    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = (
            bool(self.coordinator),
            self.num_processes is not None,
            self.process_id is not None,
        )
        if any(given) != all(given):
            raise ConfigError("--coordinator, --num_processes and --process_id go together")


def start_processes(settings: ProcessSettings) -> None:
    """Joins the other processes; to be called before JAX looks for its devices.

    Raises:
      ConfigError: what is not given cannot be found out.
    """
    try:
        jax.distributed.initialize(
            settings.coordinator or None,
            settings.num_processes,
            settings.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except ValueError as error:
        raise ConfigError(
            f"cannot find the other processes ({error}); give --coordinator=HOST:PORT, "
            "--num_processes and --process_id"
        ) from None


def is_first() -> bool:
    """Whether this is process 0, which writes the files of the run and speaks for all."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """What every process gives, as JSON holds it, by number of process. All of them call it."""
    if jax.process_count() == 1:
        return [value]
    client, call = distributed.global_state.client, next(_calls)
    client.key_value_set(f"kosmos2_jax/{call}/{jax.process_index()}", json.dumps(value))
    keys = [f"kosmos2_jax/{call}/{number}" for number in range(jax.process_count())]
    found = [json.loads(client.blocking_key_value_get(key, _PATIENCE_MS)) for key in keys]
    if is_first() and call:
        # Who has answered this call has read all answers to the one before.
        client.key_value_delete(f"kosmos2_jax/{call - 1}/")
    return found


def first_does(work: Callable[[], object]) -> None:
    """Has process 0 do what only one of them may, while the others wait.

    Raises:
      Kosmos2Error: of `work`, on all processes.
    """
    error = None
    if is_first():
        try:
            work()
        except Kosmos2Error as found:
            error = found
    message = gather(str(error) if error else None)[0]
    if error:
        raise error
    if message:
        raise Kosmos2Error(message)


def agreed(work: Callable[[], _T], kind: type[Kosmos2Error]) -> _T:
    """What `work` gives each process, unless it fails for one of them. All of them call it.

    Raises:
      Kosmos2Error: of that kind, on all processes if on one.
    """
    found: list[_T] = []
    error = None
    try:
        found.append(work())
    except kind as own:
        error = own
    messages = [message for message in gather(str(error) if error else None) if message]
    if error:
        raise error
    if messages:
        raise kind(messages[0])
    return found[0]


def first_then_others(work: Callable[[], _T]) -> _T:
    """Has process 0 do something, and then the others, who find the work done.

    Raises:
      Kosmos2Error: of `work` by process 0, on all processes.
    """
    found: list[_T] = []
    first_does(lambda: found.append(work()))
    return found[0] if found else work()


@dataclasses.dataclass(frozen=True)
class DataShard:
    """The part of the data that this process reads.

    Attributes:
      number: from 0.
      count: how many parts there are: as many as processes, or fewer where the devices that a row
        is cut over belong to several of them.
      is_keeper: whether this is the first of the processes that read the part, which counts it and
        saves its place.
    """

    number: int = 0
    count: int = 1
    is_keeper: bool = True


WHOLE = DataShard()


def data_shard(sharding: NamedSharding, rows: int) -> DataShard:
    """Which rows of a batch the devices of this process hold.

    Args:
      sharding: of a batch.
      rows: of a batch, over all processes.

    Raises:
      ConfigError: the mesh does not divide the rows, or divides them so that two processes have
        some but not all of their rows in common.
    """
    try:
        indices = sharding.devices_indices_map((rows,))
    except ValueError:
        raise ConfigError(
            f"data.batch_size {rows} is not a multiple of the devices that rows lie over, mesh "
            f"{dict(sharding.mesh.shape)}; change one of them"
        ) from None
    parts: dict[int, set[tuple[int, int, int]]] = collections.defaultdict(set)
    for device, index in indices.items():
        parts[device.process_index].add(index[0].indices(rows))
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    if len({len(part) for part in distinct}) > 1 or len(set().union(*distinct)) != sum(
        map(len, distinct)
    ):
        raise ConfigError(
            f"mesh {dict(sharding.mesh.shape)} gives processes some rows of a batch in common but "
            "not all; let the inner axes, fsdp and tensor, fill whole processes or be filled"
        )
    mine = tuple(sorted(parts[jax.process_index()]))
    readers = [process for process, part in parts.items() if tuple(sorted(part)) == mine]
    return DataShard(distinct.index(mine), len(distinct), jax.process_index() == min(readers))


def global_batch(rows: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """The batch of which every process has the rows of its `data_shard`.

    On CPU it is there when this returns: see `kosmos2_jax.training.host_memory`.
    """
    batch = jax.make_array_from_process_local_data(sharding, dict(rows))
    return jax.block_until_ready(batch) if jax.default_backend() == "cpu" else batch


def host_values(tree: Any) -> Any:
    """Whole arrays as NumPy, on every process, wherever their parts lie.

    Each array goes through one device at a time; the host must have room for all of them.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays in their shardings, from whole ones that every process has; see `host_values`."""

    def one(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(one, tree, shardings)


class StopAgreement:
    """What signal any process got, told to all of them after the same update.

    With several processes the answer comes some updates late, so that no update waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Begins with no signal; `mesh` is the run's, of all devices."""
        self._asked: collections.deque[jax.Array] = collections.deque()
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, own: signal.Signals | None) -> signal.Signals | None:
        """To be called by all processes after each update, with the signal that came or None."""
        if jax.process_count() == 1:
            return own
        shape = (self._sharding.mesh.size,)
        asked = jax.make_array_from_callback(
            shape, self._sharding, lambda _: np.array([own or 0], np.int32)
        )
        self._asked.append(self._highest(asked))
        if len(self._asked) <= _LAG:
            return None
        found = int(self._asked.popleft())
        return signal.Signals(found) if found else None


def run_program(main: Callable[[], int]) -> NoReturn:
    """Ends the process with the status that `main` gives.

    One of several that fails does not wait for the others, as JAX would have it when Python ends in
    good order: they learn of it by its silence.
    """
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if jax.distributed.is_initialized() and status not in (0, EXIT_RESTART):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
