"""Weights as inference wants them: laid out for the hardware, in fewer bytes if asked for."""

from __future__ import annotations

import difflib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kosmos2_jax.config import NONE
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.attention_kernels import hardware
from kosmos2_jax.models.products import Int8Kernel, Kernel, RowKernel, quantize_rows

INT8 = "int8"
QUANTIZATIONS = (NONE, INT8)
DTYPES = ("float32", "bfloat16")

_TOKEN_EMBEDDING = "decoder/token_embedding"
_PATCH_EMBEDDING = "vision/patch_embedding/kernel"  # a convolution's, and small


def check_storage(quantization: str, dtype: str) -> None:
    """Raises `ConfigError` unless they are of `QUANTIZATIONS` and of `DTYPES`."""
    for name, value, known in (
        ("quantization", quantization, QUANTIZATIONS),
        ("dtype", dtype, DTYPES),
    ):
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown {name} {value!r}; {hint}")


def place_parameter(
    path: str, value: np.ndarray | Array, quantization: str = NONE, dtype: str = "float32"
) -> Array | Kernel:
    """A parameter on the device, as `kosmos2_jax.models` computes with it soonest.

    On a CPU weights of linear maps are stored a row for each output. With "int8" all linear maps
    and the table of embeddings have a quarter of their bytes: whole numbers and a scale for each
    output. Norms and biases, and with "int8" the patch embedding, stay float32.

    Args:
      path: of the parameter, joined by "/".
      value: float32, of layers each by itself (not stacked).
      quantization: one of `QUANTIZATIONS`.
      dtype: one of `DTYPES`, of weights that are not quantised.

    Raises:
      ConfigError: an unknown quantization or dtype.
    """
    check_storage(quantization, dtype)
    linear = path.endswith("/kernel") and path != _PATCH_EMBEDDING
    if quantization == INT8 and (linear or path == _TOKEN_EMBEDDING):
        return Int8Kernel(*_quantize(jnp.asarray(value.T if linear else value)))
    if linear or path in (_PATCH_EMBEDDING, _TOKEN_EMBEDDING):
        value = np.asarray(value).astype(jnp.dtype(dtype), copy=False)
    if linear and hardware()[0] == "cpu":
        return RowKernel(jnp.array(value.T))  # a copy: files' buffers may be reused
    return jax.device_put(value)


_quantize = jax.jit(quantize_rows)


def place_parameters(params: Any, quantization: str = NONE, dtype: str = "float32") -> Any:
    """`place_parameter` of a whole tree of float32 arrays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, value: place_parameter(
            jax.tree_util.keystr(path, simple=True, separator="/"), value, quantization, dtype
        ),
        params,
    )


def stored_bytes(params: Any) -> int:
    """What parameters take in memory."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
