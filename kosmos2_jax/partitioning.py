"""Device mesh and the one table that places every logical axis on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kosmos2_jax.errors import ConfigError

# Axes of the mesh: copies of the parameters, their shards, and shards of the matrix products.
MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or an activation -> mesh axes it is cut over.
LOGICAL_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
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
    """A mesh over all devices.

    Args:
      shape: devices along each of `MESH_AXES`; at most one may be -1 (whatever is left). Axes not
        named count 1. Default: all devices along "data".
      devices: default `jax.devices()`.

    Raises:
      ConfigError: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict.fromkeys(MESH_AXES, 1) | dict(shape or {"data": -1})
    if unknown := set(sizes) - set(MESH_AXES):
        raise ConfigError(f"unknown mesh axes {sorted(unknown)}; known: {', '.join(MESH_AXES)}")
    given = math.prod(n for n in sizes.values() if n != -1)
    open_axes = [axis for axis, n in sizes.items() if n == -1]
    if len(open_axes) > 1:
        raise ConfigError(f"only one mesh axis may be -1, not {' and '.join(open_axes)}")
    if open_axes:
        sizes[open_axes[0]] = max(len(devices) // given, 1)
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(
            f"mesh {sizes} has {math.prod(sizes.values())} places for {len(devices)} devices"
        )
    grid = np.asarray(devices).reshape([sizes[axis] for axis in MESH_AXES])
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Sharding of each parameter from its logical axes.

    Args:
      boxed: (abstract) parameters in their `nn.LogicallyPartitioned` boxes.
      mesh: the mesh.

    Raises:
      ConfigError: a dimension that its mesh axis does not divide.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), LOGICAL_RULES)
    shapes = nn.meta.unbox(boxed)

    def place(path: Any, spec: PartitionSpec, leaf: Any) -> NamedSharding:
        for size, axis in zip(leaf.shape, spec, strict=False):
            parts = math.prod(mesh.shape[a] for a in _axes(axis))
            if size % parts:
                raise ConfigError(
                    f"parameter {jax.tree_util.keystr(path)} has a dimension of {size}, which "
                    f"{parts} devices along mesh axis {axis!r} do not divide; change the mesh"
                )
        return NamedSharding(mesh, spec)

    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree_util.tree_map_with_path(place, specs, shapes, is_leaf=is_spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are cut over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def _axes(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis
