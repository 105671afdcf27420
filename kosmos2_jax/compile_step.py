"""`kosmos2 compile`: the real training step, compiled ahead of time for TPUs that are not here.

libtpu holds the whole TPU compiler and needs no TPU. What it compiles is what `train.py` runs:
the same step, state, shardings and batch; no array is ever made. Told are the memory of a chip,
what travels between chips, and by a simple model of the hardware how long an update would take.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.partitioning import check_mesh, make_mesh
from kosmos2_jax.training.collectives import Traffic, collectives_of
from kosmos2_jax.training.flops import CHIPS, Chip, ModelFlops, chip_of, model_flops
from kosmos2_jax.training.meter import trained_parts
from kosmos2_jax.training.roofline import Memory, Roofline, estimate
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.run_step import batch_shapes, make_run_step
from kosmos2_jax.training.state import run_groups

_GIB = 1024**3
# What Cloud TPU sells, to suggest from; libtpu decides.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
TOPOLOGIES = tuple(
    f"{chip}:{shape}"
    for chip, shapes in (("v5e", _FLAT), ("v5p", _CUBES), ("v6e", _FLAT))
    for shape in shapes
)
# Tasks of a mixture, whose losses are told apart. The data that would say are not here; a sum more
# or less is nothing to a step.
_NUM_TASKS = 8
# As the names of kernels stand in the metadata of a program.
_KERNELS = ("splash",)
# The compiler's two ways of saying how much memory it would have needed, or at least.
_OUT_OF_MEMORY = re.compile(
    r"Used ([\d.]+[KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+[KMGT])\) exceeds available HBM"
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is known of a step that was compiled, or was found too large to be.

    Attributes:
      run: its settings.
      mesh: devices along each axis.
      chip: what one of them is.
      memory: of a chip; None if the compiler gave up for lack of it.
      peak: bytes of a chip that are needed.
      attention: "splash", or "xla" where no kernel is in the program.
      collectives: what travels, by kind.
      flops: of an update, by our formula.
      roofline: None where there is no program.
    """

    run: RunConfig
    mesh: dict[str, int]
    chip: Chip
    memory: Memory | None
    peak: int
    attention: str
    collectives: dict[str, Traffic]
    flops: ModelFlops
    roofline: Roofline | None

    @property
    def fits(self) -> bool:
        """Whether the step runs on such chips."""
        return self.memory is not None and self.peak <= self.chip.memory

    @property
    def devices(self) -> int:
        """How many chips there are."""
        return math.prod(self.mesh.values())

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step that takes so long."""
        return self.flops.total / (seconds * self.devices * self.chip.peak_flops)


def compile_run(
    run: RunConfig, topology: str, mesh_shape: dict[str, int] | None = None
) -> Compiled:
    """Compiles the training step of a run for a topology.

    Args:
      run: the run.
      topology: as "v5e:16x16". A "slice" above 1 in the mesh makes it so many slices of it.
      mesh_shape: instead of the run's.

    Raises:
      ConfigError: no libtpu, or one that does not go with this JAX; an unknown topology; a mesh
        that does not fit the run.
    """
    if not run.model.decoder.vocab_size:
        raise ConfigError(
            "model.decoder.vocab_size is 0, which takes the tokenizer's, but nothing is read "
            "here: give --config.model.decoder.vocab_size=65037 or what it will be"
        )
    shape = dict(mesh_shape or run.mesh)
    mesh = make_mesh(shape, tpu_devices(topology, max(shape.get("slice", 1), 1)))
    check_mesh(mesh, run.model, run.data.batch_size, run.micro_batches)
    chip = _chip_of(mesh, topology)
    data = run.data
    flops = model_flops(
        run.model,
        data.batch_size,
        data.length,
        data.batch_size * data.images,
        trained_parts(run_groups(run)),
    )
    known = {"run": run, "mesh": dict(mesh.shape), "chip": chip, "flops": flops}
    try:
        program = _lower(run, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _OUT_OF_MEMORY.search(str(error))
        if needed is None:
            raise
        size = needed[1] or needed[2]
        peak = int(float(size[:-1]) * 1024 ** ("KMGT".index(size[-1]) + 1))
        return Compiled(
            **known, memory=None, peak=peak, attention="", collectives={}, roofline=None
        )
    text, sizes = _text_of(program), program.memory_analysis()
    memory = Memory(
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes,
        donated=sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        program=sizes.generated_code_size_in_bytes,
    )
    collectives = collectives_of(text)
    return Compiled(
        **known,
        memory=memory,
        peak=memory.total,
        attention=next((name for name in _KERNELS if name in text), "xla"),
        collectives=collectives,
        roofline=estimate(run, chip, mesh.size, flops, memory, collectives),
    )


def tpu_devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a topology, of which only the description is here.

    Raises:
      ConfigError: no libtpu, no such topology, or one of half chips (v4).
    """
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "kosmos2 compile needs the TPU compiler: run `pip install 'kosmos2-jax[compile]'`"
        )
    try:
        many = {"num_slices": slices} if slices > 1 else {}
        devices = list(topologies.get_topology_desc(topology, "tpu", **many).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError):
        near = difflib.get_close_matches(topology, TOPOLOGIES, n=3, cutoff=0.3)
        raise ConfigError(
            f"libtpu knows no topology {topology!r}; near ones: {', '.join(near or TOPOLOGIES)}"
        ) from None
    if any(device.core_on_chip for device in devices):
        raise ConfigError(
            f"libtpu describes {topology!r} with two devices a chip, but training has one; take a "
            "topology of v5e, v5p or v6e"
        )
    return devices


def _lower(run: RunConfig, mesh: Mesh) -> Any:
    """The step as `train.py` makes it, traced for these devices on shapes alone."""
    # Not jax.set_mesh, under which JAX would make constants on devices that are not here.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        step = make_run_step(run, mesh, _NUM_TASKS)
        traced = step.update.trace(step.shapes, batch_shapes(run, step.rows))
        return traced.lower(lowering_platforms=("tpu",))


def _text_of(program: jax.stages.Compiled) -> str:
    try:
        return program.as_text()
    except jax.errors.JaxRuntimeError as error:
        # Seen with libtpu 0.0.52 and jaxlib 0.10.2, where "tensor" cuts products.
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"jaxlib {jax.__version__} cannot read what libtpu {metadata.version('libtpu')} "
            f"compiled ({reason}); take the libtpu that this JAX names: "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        ) from None


def _chip_of(mesh: Mesh, topology: str) -> Chip:
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip is None:
        known = ", ".join(chip.name for chip in CHIPS if chip.links > 1)
        raise ConfigError(
            f"nothing is known of the memory and speed of {topology!r}; known: {known}"
        )
    return chip


def to_dict(compiled: Compiled) -> dict[str, Any]:
    """What `--json` prints; sizes in bytes but for `peak_gib`, times in seconds."""
    roofline = compiled.roofline
    return {
        "fits": compiled.fits,
        "peak_gib": round(compiled.peak / _GIB, 3),
        "attention": compiled.attention,
        "collectives": {
            kind: dataclasses.asdict(traffic) for kind, traffic in compiled.collectives.items()
        },
        "mesh": compiled.mesh,
        "chip": compiled.chip.name,
        "hbm_gib": compiled.chip.memory / _GIB,
        "memory": None if compiled.memory is None else dataclasses.asdict(compiled.memory),
        "flops": {**dataclasses.asdict(compiled.flops), "total": compiled.flops.total},
        "roofline": None if roofline is None else dataclasses.asdict(roofline),
        "mfu": None if roofline is None else [
            round(compiled.mfu(seconds), 3) for seconds in (roofline.serial, roofline.overlapped)
        ],
    }  # fmt: skip


def to_text(compiled: Compiled) -> str:
    """What `kosmos2 compile` prints."""
    chip, memory, roofline = compiled.chip, compiled.memory, compiled.roofline
    run, used = compiled.run, compiled.peak / chip.memory
    axes = " x ".join(f"{axis} {size}" for axis, size in compiled.mesh.items() if size > 1)
    verdict = "fits" if compiled.fits else "DOES NOT FIT"
    lines = [
        f"{compiled.devices} x {chip.name}, {axes or 'one device'}; {run.data.batch_size} rows of "
        f"{run.data.length} tokens, {run.data.images} pictures a row, in {run.micro_batches} "
        "micro-batch(es)",
        f"{verdict}: {_gib(compiled.peak)} of {_gib(chip.memory)} a chip ({used:.0%})",
    ]
    if memory is None or roofline is None:
        mend = "take more chips, or more micro_batches, or recompute more"
        return "\n".join([*lines, f"  the compiler gave up: {mend}"])
    lines += [
        f"  {kind:<12}{_gib(size):>12}"
        for kind, size in (dataclasses.asdict(memory) | {"donated": -memory.donated}).items()
    ]
    lines.append(f"attention: {compiled.attention}")
    lines.append("between chips, in one update:" if compiled.collectives else "no collectives")
    for kind, traffic in compiled.collectives.items():
        sizes = ", ".join(map(str, traffic.groups))
        lines.append(
            f"  {kind:<20}{traffic.count:>8} times{_gib(traffic.sent):>14} sent by a chip, in "
            f"groups of {sizes}{', at least' if traffic.at_least else ''}"
        )
    flops = compiled.flops
    parts = ", ".join(
        f"{part} {value / flops.total:.0%}" for part, value in dataclasses.asdict(flops).items()
    )
    lines += [
        f"an update is {flops.total / 1e12:,.0f} TFLOP by our formula ({parts}), every place for "
        "a picture counted as full",
        f"roofline: compute {roofline.compute:.3f} s, memory {roofline.memory:.3f} s, network "
        f"{roofline.network:.3f} s",
        f"  so {roofline.overlapped:.3f} s (MFU {compiled.mfu(roofline.overlapped):.0%}) if they "
        f"overlap, {roofline.serial:.3f} s (MFU {compiled.mfu(roofline.serial):.0%}) if not",
        f"  assumes {chip.peak_flops / 1e12:g} TFLOP/s in bfloat16, {chip.bandwidth / 1e12:g} TB/s "
        f"of HBM and {chip.links} links of {chip.link_bandwidth / 1e9:g} GB/s, all at their peak",
    ]
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"
