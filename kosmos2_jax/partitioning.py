"""Device mesh, and the one table that places every array of a run on it.

Arrays name their axes (`"batch"`, `"embed"`, …), the table says over which axes of the mesh each
name is cut, and nothing else in the code knows the mesh. Parameters carry the names of their axes
from birth (`nn.with_logical_partitioning`), the optimiser's moments lie as their parameters do,
and activations are placed by `constrain` inside the model.

So one table gives every known layout: `{"data": -1}` copies the parameters to each device;
`{"fsdp": -1}` cuts them, too, and gathers a layer's just before it runs (ZeRO-3); `"tensor"` cuts
the matrix products; `"slice"` are copies again, between which only gradients travel, so that the
slow network between slices of TPUs suffices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError, nearest

# From the slowest network to the fastest.
MESH_AXES = ("slice", "data", "fsdp", "tensor")

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

# Logical axis of a parameter or an activation -> mesh axes it is cut over.
LOGICAL_RULES: Rules = (
    ("batch", ("slice", "data", "fsdp")),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vision_embed", "fsdp"),
    ("vision_heads", "tensor"),
    ("vision_mlp", "tensor"),
    ("layers", None),
)


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, laid along their wires where the platform has a topology (TPU).

    Args:
      shape: devices along each of `MESH_AXES`; at most one may be -1 (whatever is left). Axes not
        named count 1. Default: all devices along "data".
      devices: default `jax.devices()`.

    Raises:
      ConfigError: an unknown axis, sizes that do not multiply to the number of devices, or a
        "slice" that is not the number of slices of TPUs.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _mesh_sizes(dict(shape or {"data": -1}), len(devices))
    lengths = [sizes[axis] for axis in MESH_AXES]
    if devices[0].platform == "tpu":
        grid = _tpu_grid(lengths, devices)
    else:
        grid = np.asarray(devices).reshape(lengths)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def every_axis(shape: Mapping[str, int]) -> dict[str, int]:
    """The shape of a mesh with 1 for each of `MESH_AXES` that it does not name.

    Raises:
      ConfigError: an unknown axis.
    """
    for axis in shape:
        if axis not in MESH_AXES:
            raise ConfigError(f"unknown mesh axis {axis!r}; {nearest(axis, MESH_AXES)}")
    return dict.fromkeys(MESH_AXES, 1) | dict(shape)


def _mesh_sizes(shape: Mapping[str, int], devices: int) -> dict[str, int]:
    sizes = every_axis(shape)
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f"mesh.{axis} is {size}; it must be at least 1, or -1 for the rest")
    given = math.prod(n for n in sizes.values() if n != -1)
    open_axes = [axis for axis, n in sizes.items() if n == -1]
    if len(open_axes) > 1:
        raise ConfigError(f"only one mesh axis may be -1, not {' and '.join(open_axes)}")
    if open_axes:
        sizes[open_axes[0]] = max(devices // given, 1)
    if math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"mesh {sizes} has {math.prod(sizes.values())} places for {devices} devices; make "
            "them equal, or one axis -1"
        )
    return sizes


def _tpu_grid(lengths: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Neighbours in the mesh are neighbours in the torus; slices lie along the first axis."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if lengths[0] != slices:
        raise ConfigError(
            f"mesh.slice is {lengths[0]}, but the devices are of {slices} slice(s); make it equal"
        )
    if slices == 1:
        return mesh_utils.create_device_mesh(lengths, devices, allow_split_physical_axes=True)
    within = [1, *lengths[1:]]
    between = [slices] + [1] * (len(lengths) - 1)
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def logical_spec(
    names: Sequence[str | None], what: str = "an array", rules: Rules = LOGICAL_RULES
) -> PartitionSpec:
    """Where the table places an array whose axes have these names; None for one that is not cut.

    Args:
      names: of its axes.
      what: it is, for messages.
      rules: the table.

    Raises:
      ConfigError: a name that the table lacks, or two axes of the array over one of the mesh.
    """
    table = dict(rules)
    spec: list[str | tuple[str, ...] | None] = []
    user: dict[str, str] = {}
    for name in names:
        if name is not None and name not in table:
            raise ConfigError(
                f"{what} has an axis {name!r}, which the table of logical axes lacks; known: "
                f"{', '.join(table)}"
            )
        cut = None if name is None else table[name]
        for axis in _axes(cut):
            if axis in user:
                raise ConfigError(
                    f"{what} would be cut twice over mesh axis {axis!r}, along {user[axis]!r} "
                    f"and {name!r}; give one of them another mesh axis"
                )
            user[axis] = name
        spec.append(cut)
    return PartitionSpec(*spec)


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Places an activation by the table on the ambient mesh (`jax.set_mesh`), if there is one.

    So that the compiler need not guess. An axis whose length the mesh does not divide, as of the
    single row that parameters are initialised with, is left whole.

    Args:
      x: an array of a traced program.
      names: logical names of its axes; None for one that is not cut.
    """
    mesh = _ambient_mesh()
    if mesh is None:
        return x
    spec = logical_spec(names)
    whole = [
        cut if size % _parts(mesh, cut) == 0 else None
        for size, cut in zip(x.shape, spec, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*whole))


def gather(x: jax.Array, names: Sequence[str | None], dtype: Any) -> jax.Array:
    """A parameter in the dtype it is used in, brought together from the devices along fsdp.

    Told so, the compiler gathers a layer's parameters just before it runs and scatters their
    gradient; else it may cut a product into a loop of small ones that pass pieces around, or sum
    up whole gradients on every device. Without a mesh nothing happens.

    Args:
      x: the parameter.
      names: logical names of its axes.
      dtype: half precision halves what travels.
    """
    mesh = _ambient_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return x
    return _gather(x.astype(dtype), tuple(names))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    whole = [name if "fsdp" not in _axes(dict(LOGICAL_RULES).get(name)) else None for name in names]
    return constrain(x, whole)


def _gather_forward(x: jax.Array, names: tuple[str | None, ...]) -> tuple[jax.Array, None]:
    return _gather(x, names), None


def _gather_backward(
    names: tuple[str | None, ...], _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (constrain(gradient, names),)


_gather.defvjp(_gather_forward, _gather_backward)


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Sharding of each parameter from its logical axes.

    Args:
      boxed: (abstract) parameters in their `nn.LogicallyPartitioned` boxes.
      mesh: the mesh.

    Raises:
      ConfigError: a dimension that its mesh axis does not divide, or see `logical_spec`.
    """
    shapes = nn.meta.unbox(boxed)

    def place(path: Any, names: PartitionSpec, leaf: Any) -> NamedSharding:
        name = f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')}"
        spec = logical_spec(names, name)
        for size, cut in zip(leaf.shape, spec, strict=False):
            parts = _parts(mesh, cut)
            if size % parts:
                raise ConfigError(
                    f"{name} has a dimension of {size}, which {parts} devices along mesh axis "
                    f"{'+'.join(_axes(cut))!r} do not divide; change the mesh"
                    + (", or set model.decoder.vocab_multiple" if "vocab" in names else "")
                )
        return NamedSharding(mesh, spec)

    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree_util.tree_map_with_path(
        place, nn.get_partition_spec(boxed), shapes, is_leaf=is_spec
    )


def check_mesh(mesh: Mesh, model: Kosmos2Config, rows: int, micro_batches: int = 1) -> None:
    """Whether a run's heads and rows can be dealt to the devices; parameters tell themselves.

    Args:
      mesh: of the run.
      model: its architecture.
      rows: of an update (`data.batch_size`).
      micro_batches: parts of it that are worked through one after the other.

    Raises:
      ConfigError: what does not divide what, and the mend.
    """
    tensor = mesh.shape["tensor"]
    for part in ("vision", "decoder"):
        heads = getattr(model, part).num_heads
        if heads % tensor:
            raise ConfigError(
                f"model.{part}.num_heads is {heads}, which mesh.tensor={tensor} does not divide; "
                f"take a divisor of {heads}"
            )
    parts = _parts(mesh, dict(LOGICAL_RULES)["batch"])
    if rows % (parts * micro_batches):
        part = f" of {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise ConfigError(
            f"data.batch_size is {rows}, but {parts} devices along slice, data and fsdp need the "
            f"same number of rows each{part}; make it a multiple of {parts * micro_batches}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are cut over the slice, data and fsdp axes."""
    return NamedSharding(mesh, logical_spec(("batch",)))


def _ambient_mesh() -> AbstractMesh | None:
    """The mesh of the run under way; None without one, or under a mesh that is not of our axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if set(MESH_AXES) <= set(mesh.axis_names) else None


def _axes(cut: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if cut is None:
        return ()
    return (cut,) if isinstance(cut, str) else cut


def _parts(mesh: Any, cut: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(cut))
