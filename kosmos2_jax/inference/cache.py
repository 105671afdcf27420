"""Rows and slots of a key-value cache: how many, more of them, others in their place.

Letters: B rows, T slots, H heads, D size of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kosmos2_jax.models.decoder import Cache

# Axes of `kosmos2_jax.models.decoder.LayerCache`, [..., B, H, T, D], counted from the end because
# scanned layers have one more in front.
_ROWS, _SLOTS = -4, -2


def cache_slots(cache: Cache) -> int:
    """T."""
    return jax.tree.leaves(cache)[0].shape[_SLOTS]


def resize_cache(cache: Cache, slots: int) -> Cache:
    """The cache with so many slots a row; what is cut off is lost, what is new is zero."""

    def resize(leaf: Array) -> Array:
        if slots <= leaf.shape[_SLOTS]:
            return jax.lax.slice_in_dim(leaf, 0, slots, axis=leaf.ndim + _SLOTS)
        widths = [(0, 0)] * leaf.ndim
        widths[_SLOTS] = (0, slots - leaf.shape[_SLOTS])
        return jnp.pad(leaf, widths)

    return jax.tree.map(resize, cache)


def insert_row(cache: Cache, row: Int[Array, ""], others: Cache, other: Int[Array, ""]) -> Cache:
    """The cache with the first slots of a row taken from another cache.

    Args:
      cache: of at least as many slots as `others`.
      row: which row.
      others: another cache.
      other: which row of it.
    """

    def insert(leaf: Array, source: Array) -> Array:
        axis = leaf.ndim + _ROWS
        part = jax.lax.dynamic_slice_in_dim(source, other, 1, axis)
        start = [jnp.int32(0)] * leaf.ndim
        start[axis] = row
        return jax.lax.dynamic_update_slice(leaf, part, start)

    return jax.tree.map(insert, cache, others)
