"""The small pieces every part shares: linear map, layer norm, and a stack of like layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from kosmos2_jax.config import ATTENTION, FULL, MINIMAL, NONE
from kosmos2_jax.models.attention_kernels import ATTENTION_OUTPUT
from kosmos2_jax.models.initializers import torch_linear
from kosmos2_jax.models.products import (
    Kernel,
    column_sums,
    product,
    trained_product,
    weighted_means,
)
from kosmos2_jax.partitioning import gather


class Linear(nn.Module):
    """`x @ kernel + bias` with logical axis names on both parameters.

    In place of the kernel there may be one of `kosmos2_jax.models.products`.

    Attributes:
      features: outputs.
      axes: logical names of the kernel's (input, output) axes.
      gain: factor of the initial values, bias included (Magneto's sub-LN gain).
      kernel_init: replaces torch's default for the kernel.
      bias_init: replaces torch's default for the bias.
      dtype: of the product.
    """

    features: int
    axes: tuple[str | None, str | None]
    gain: float = 1.0
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        default = torch_linear(x.shape[-1], self.gain)
        kernel = self.get_variable("params", "kernel")
        if not isinstance(kernel, Kernel):
            kernel = self.param(
                "kernel",
                nn.with_logical_partitioning(self.kernel_init or default, self.axes),
                (x.shape[-1], self.features),
            )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(self.bias_init or default, self.axes[1:]),
            (self.features,),
        )
        # One two-dimensional product: on CPU its gradient takes half the time of a batched one.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        if isinstance(kernel, Kernel):
            flat = product(flat, kernel, self.dtype)
        else:
            kernel = gather(kernel, self.axes, self.dtype).astype(self.dtype)
            flat = trained_product(flat, kernel)
        return flat.reshape(*x.shape[:-1], self.features) + bias.astype(self.dtype)


class LayerNorm(nn.Module):
    """Normalises the last axis, in float32 (as apex' fused one), then scales and shifts it.

    Attributes:
      axis: logical name of that axis.
      epsilon: added to the variance.
      dtype: of the result.
    """

    axis: str
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
        scale, bias = (
            self.param(name, nn.with_logical_partitioning(init, (self.axis,)), x.shape[-1:])
            for name, init in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        return _normalize(x, scale, bias, self.epsilon).astype(self.dtype)


# With its own gradient, as the one that follows from Flax's LayerNorm keeps several arrays of the
# size of x where x and two numbers a token are enough; 8% of a training step on CPU.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: Array, scale: Array | np.ndarray, bias: Array | np.ndarray, epsilon: float
) -> Array:
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(
    x: Array, scale: Array | np.ndarray, bias: Array | np.ndarray, epsilon: float
) -> tuple[Array, tuple[Array | np.ndarray, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    return (wide - mean) * inverse * scale + bias, (x, scale, mean, inverse)


def _normalize_backward(
    epsilon: float, kept: tuple[Array | np.ndarray, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = kept
    normal = (x.astype(jnp.float32) - mean) * inverse
    along = gradient * normal
    of_normal = gradient * scale - weighted_means(gradient, scale)
    of_x = inverse * (of_normal - normal * weighted_means(along, scale))
    return of_x.astype(x.dtype), column_sums(along), column_sums(gradient)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, by erf as in torch; `jax.nn.gelu` takes erfc, four times as slow on CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """CLIP's `x * sigmoid(1.702 x)`."""
    return x * jax.nn.sigmoid(1.702 * x)


def keep(remat: str) -> Callable[..., Any]:
    """What a layer keeps for the gradient, as a policy of `jax.checkpoint`; the rest is recomputed.

    Args:
      remat: one of `kosmos2_jax.config.REMATS` but "none".
    """
    policies = jax.checkpoint_policies
    attention = policies.save_only_these_names(ATTENTION_OUTPUT)
    products = policies.dots_with_no_batch_dims_saveable  # those with weights, not attention's
    return {
        MINIMAL: policies.save_from_both_policies(products, attention),
        ATTENTION: attention,
        FULL: policies.nothing_saveable,
    }[remat]


def run_layers(
    make_layer: Callable[[str], nn.Module],
    num_layers: int,
    scan: bool,
    remat: str,
    x: Array,
    cache: Any,
    *shared: Any,
) -> tuple[Array, Any]:
    """Runs `num_layers` like layers, each `(x, cache, *shared) -> (x, cache)`.

    Args:
      make_layer: builds the layer of that name inside the calling module.
      num_layers: how many.
      scan: one traced layer over stacked parameters `layers` instead of `layers_0`, `layers_1`, …
      remat: what to recompute for the gradient, one of `kosmos2_jax.config.REMATS`.
      x: input of the first layer.
      cache: None, or the layers' caches: a tuple (unrolled), or one tree with a leading layer axis
        (scanned).
      *shared: given to every layer.

    Returns:
      The last layer's output and the new caches in the same form.
    """

    def call(layer: nn.Module, *args: Any) -> tuple[Array, Any]:
        return layer(*args)

    if remat != NONE and cache is None:  # whoever has a cache takes no gradient
        # A scan keeps the compiler from merging both computations, and needs no other barrier.
        call = nn.remat(call, prevent_cse=not scan, policy=keep(remat))
    if not scan:
        caches = []
        for i in range(num_layers):
            layer, its_cache = make_layer(f"layers_{i}"), None if cache is None else cache[i]
            x, new = call(layer, x, its_cache, *shared)
            caches.append(new)
        return x, None if cache is None else tuple(caches)
    body = nn.scan(
        call,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0,) + (nn.broadcast,) * len(shared),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return body(make_layer("layers"), x, cache, *shared)
