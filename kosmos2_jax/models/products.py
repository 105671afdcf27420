"""Products of activations with weights: those that train, and those that inference stores.

Training has weights (in, out). Inference has a row for each output: so lie the weights of torch's
files, and so a CPU reads them once, in order, at the speed of its memory. Stored (in, out), XLA's
CPU backend copies them before each product with several rows.

Letters: M rows of activations, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Int32

from kosmos2_jax.models.attention_kernels import hardware

# Rows up to which the weights are best the left operand, which XLA on CPU reads in place; of the
# right one it makes a copy. With more rows that copy is soon paid for.
_IN_PLACE = 128
# Rows up to which sums of products beat XLA's product of int8 matrices on CPU.
_SUMMED = 4
_LARGEST = 127  # of an int8, symmetrically


class RowKernel(NamedTuple):
    """Weights of a linear map, transposed: its inputs last."""

    weight: Float[Array, "O I"]


class Int8Kernel(NamedTuple):
    """Weights of a linear map as whole numbers -127..127 times a scale for each output."""

    weight: Int8[Array, "O I"]
    scale: Float[Array, " O"]


Kernel = RowKernel | Int8Kernel


def trained_product(
    x: Float[Array, "M I"], kernel: Float[Array | np.ndarray, "I O"]
) -> Float[Array, "M O"]:
    """`x @ kernel`, whose gradient on CPU takes the kernel's by faster products."""
    return _cpu_product(x, kernel) if hardware()[0] == "cpu" else x @ kernel


# XLA on CPU takes transpose(x) @ gradient, both as they lie, at 60% of the speed of other products.
# It is faster with the transpose of x in memory, or, if x is the wider of both, turned round. The
# barriers keep XLA from taking that back. Together 5% of a training step. Constants come here as a
# type of JAX's own that is no `Array`, hence `Any`.
@jax.custom_vjp
def _cpu_product(x: Any, kernel: Any) -> Array:
    return x @ kernel


def _cpu_forward(x: Any, kernel: Any) -> tuple[Array, tuple[Any, Any]]:
    return x @ kernel, (x, kernel)


def _cpu_backward(kept: tuple[Any, Any], gradient: Any) -> tuple[Array, Array]:
    x, kernel = kept
    if kernel.shape[0] > kernel.shape[1]:
        of_kernel = jax.lax.optimization_barrier(gradient.T @ x).T
    else:
        of_kernel = jax.lax.optimization_barrier(x.T) @ gradient
    return gradient @ kernel.T, of_kernel


_cpu_product.defvjp(_cpu_forward, _cpu_backward)


# Sums are taken as products on CPU, where XLA has no product and sum in one loop: it writes what it
# sums up to memory first. The gradient of a LayerNorm takes half the time.
def weighted_means(
    x: Float[Array, "*batch I"], weights: Float[Array | np.ndarray, " I"]
) -> Float[Array, "*batch 1"]:
    """Means of `x * weights` along the last axis."""
    if hardware()[0] != "cpu":
        return (x * weights).mean(-1, keepdims=True)
    flat = x.reshape(-1, x.shape[-1]) @ (jnp.asarray(weights) / x.shape[-1])[:, None]
    return flat.reshape(*x.shape[:-1], 1)


def column_sums(x: Float[Array, "*batch O"]) -> Float[Array, " O"]:
    """Sums along all axes but the last."""
    flat = x.reshape(-1, x.shape[-1])
    return (jnp.ones((1, len(flat))) @ flat)[0] if hardware()[0] == "cpu" else flat.sum(0)


def as_kernel(table: Float[Array | np.ndarray, "O I"] | Kernel) -> Kernel:
    """A table whose rows are outputs already, as that of embeddings, as a kernel."""
    return table if isinstance(table, Kernel) else RowKernel(jnp.asarray(table))


def quantize_rows(
    x: Float[Array, "R C"],
) -> tuple[Int8[Array, "R C"], Float[Array, " R"]]:
    """Whole numbers and a scale for each row, so that the largest of a row is 127 times it."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0.0, largest / _LARGEST, 1.0)
    return jnp.round(x / scale).astype(jnp.int8), scale[:, 0]


def product(x: Float[Array, "M I"], kernel: Kernel, dtype: Any) -> Float[Array, "M O"]:
    """`x` times the transposed weights.

    With int8 weights each row of `x` is quantised, too, and whole numbers are summed, which is
    exact: the only errors are those of rounding `x` and the weights.
    """
    if isinstance(kernel, RowKernel):
        return _float_product(x.astype(dtype), kernel.weight.astype(dtype))
    whole, scale = quantize_rows(x)
    sums = _int8_product(whole, kernel.weight)
    return (sums.astype(jnp.float32) * scale[:, None] * kernel.scale).astype(dtype)


def rows_of(kernel: Kernel, index: Int32[Array, "*batch"], dtype: Any) -> Array:
    """Some of the kernel's rows, as of a table of embeddings."""
    rows = jnp.take(kernel.weight, index, axis=0).astype(dtype)
    if isinstance(kernel, RowKernel):
        return rows
    return rows * jnp.take(kernel.scale, index)[..., None].astype(dtype)


def _float_product(x: Float[Array, "M I"], weight: Float[Array, "O I"]) -> Float[Array, "M O"]:
    if 1 < len(x) <= _IN_PLACE:
        # The barriers keep XLA from turning the product round again.
        columns = jax.lax.optimization_barrier(x.T)
        return jax.lax.optimization_barrier(weight @ columns).T
    return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())))


def _int8_product(x: Int8[Array, "M I"], weight: Int8[Array, "O I"]) -> Int32[Array, "M O"]:
    if len(x) > _SUMMED:
        contract = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(x, weight, contract, preferred_element_type=jnp.int32)
    # All rows' sums in one pass over the weights: XLA makes one loop of it that runs at the speed
    # of memory. It must be several sums, as XLA cuts up a reduction that has a single one into
    # slow parts, so that one row alone is joined by the sum of its own numbers. The barrier keeps
    # XLA from widening the weights once, in memory, before the loop over steps. Barriers are gone
    # when XLA merges loops: only a branch, which is always taken, keeps it from quantising the row
    # anew for each output, which takes twice the time of the sums.
    always = x[0, 0] >= -_LARGEST
    x = jax.lax.cond(always, lambda x: x, jnp.zeros_like, x)
    rows, weight = jax.lax.optimization_barrier((tuple(x.astype(jnp.int32)), weight))
    wide = weight.astype(jnp.int32)
    products = [wide * row for row in rows]
    if len(products) == 1:
        products.append(jnp.broadcast_to(rows[0], wide.shape))
    zeros = [jnp.int32(0)] * len(products)
    sums = jax.lax.reduce(products, zeros, _add_each, (1,))
    # Else XLA would drop the sum that is of no use.
    return jnp.stack(jax.lax.optimization_barrier(tuple(sums))[: len(x)])


def _add_each(left: list[Array], right: list[Array]) -> list[Array]:
    return [one + other for one, other in zip(left, right, strict=True)]
