"""What an update asks of the hardware: memory of a chip, and the least time it can take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kosmos2_jax.config import FULL
from kosmos2_jax.interop.names import num_parameters
from kosmos2_jax.training.collectives import Traffic
from kosmos2_jax.training.flops import Chip, ModelFlops, model_flops
from kosmos2_jax.training.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip's HBM, by the compiler's own account.

    Attributes:
      arguments: state and batch.
      outputs: the new state and the metrics.
      donated: outputs that take the place of arguments.
      temporaries: what lives within the step: activations, gradients, gathered parameters.
      program: the compiled code.
    """

    arguments: int
    outputs: int
    donated: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """What the step needs."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of an update that each resource takes at its full speed, see `estimate`."""

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """Where all three go on at once: no step is faster."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """Where they wait for one another."""
        return self.compute + self.memory + self.network


def estimate(
    run: RunConfig,
    chip: Chip,
    devices: int,
    flops: ModelFlops,
    memory: Memory,
    collectives: Mapping[str, Traffic],
) -> Roofline:
    """How long an update keeps each resource busy, if it always works at its full speed.

    Compute: the formula's operations, and the forward pass again where the whole layers are
    recomputed (`remat="full"`), at the bfloat16 peak. Memory: arguments read and outputs written
    once, temporaries written and read once a micro-batch, and for each micro-batch the parameters
    in bfloat16 read in the forward and in the backward pass. Network: what a chip sends, over all
    its links at once; a slower network between slices does not count.
    """
    again = 0
    if run.model.remat == FULL:
        data = run.data
        again = model_flops(
            run.model, data.batch_size, data.length, data.batch_size * data.images, trained=()
        ).total
    passes = 2 * 2 * num_parameters(run.model) * run.micro_batches
    moved = memory.arguments + memory.outputs + 2 * memory.temporaries * run.micro_batches + passes
    sent = sum(traffic.sent for traffic in collectives.values())
    return Roofline(
        compute=(flops.total + again) / (devices * chip.peak_flops),
        memory=moved / chip.bandwidth,
        network=sent / (chip.links * chip.link_bandwidth),
    )
