"""Self-attention by kernels that hold neither scores nor masks in memory.

Each takes scaled queries, keys and values [B, L, H, D], segment ids [B, L] or None, and whether
attention is causal; each works on its own part of the batch and of the heads under the ambient
mesh, and gives [B, L, H, D]. Pallas' kernels want a multiple of `BLOCK` tokens: the rest is padded
with tokens of a segment of their own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from kosmos2_jax.errors import ConfigError

# Pallas' kernels work on a multiple of so many tokens.
BLOCK = 128
GPUS = ("gpu", "cuda")
# Name of what splash attention gives and keeps for its gradient, for policies of recomputation.
ATTENTION_OUTPUT = "attention_output"

# Side of a tile of splash attention at most; 512 is what MaxText runs on every TPU since v4.
_SPLASH_TILE = 512
# Of the padding's own segment.
_NOWHERE = -1

Kernel = Callable[..., Array]


def hardware() -> tuple[str, str]:
    """Platform and kind of device that the program under way is for: "tpu", "TPU v5 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend(), jax.devices()[0].device_kind
    return device.platform, device.device_kind


def splash(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B L H D"],
    value: Float[Array, "B L H D"],
    segment_ids: Int[Array, "B L"] | None,
    causal: bool,
) -> Float[Array, "B L H D"]:
    """JAX's splash attention for TPUs from v4 on."""
    # Imported late: inference on a CPU has no need of Pallas, and pays for it at every start.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    interpret = hardware()[0] != "tpu"

    def kernel(query: Array, key: Array, value: Array, segment_ids: Array) -> Array:
        length, heads = query.shape[1:3]
        tile = length if length <= _SPLASH_TILE else math.gcd(length, _SPLASH_TILE)
        mask = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
        sizes = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv")
        sizes += ("block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
        one_row = splash_attention_kernel.make_splash_mha_single_device(
            splash_attention_mask.MultiHeadMask([mask((length, length))] * heads),
            block_sizes=splash_attention_kernel.BlockSizes(**dict.fromkeys(sizes, tile)),
            residual_checkpoint_name=ATTENTION_OUTPUT,
            interpret=interpret,
        )
        ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)
        rows = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
        return jax.vmap(one_row)(*rows, ids).transpose(0, 2, 1, 3)

    return _on_every_device(_padded(kernel), query, key, value, segment_ids)


def triton(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B L H D"],
    value: Float[Array, "B L H D"],
    segment_ids: Int[Array, "B L"] | None,
    causal: bool,
) -> Float[Array, "B L H D"]:
    """Pallas' fused attention for GPUs, which unlike cuDNN's knows segments."""
    from jax.experimental.pallas.ops.gpu import attention

    # The forward tiles are Pallas' own; backward ones of 64 fill Hopper's matrix units, 32 do not.
    sizes = attention.BlockSizes(128, 128, 64, 64, 64, 64)
    kernel = functools.partial(
        attention.mha,
        causal=causal,
        block_sizes=sizes,
        interpret=hardware()[0] not in GPUS,
    )
    return _on_every_device(_padded(kernel), query, key, value, segment_ids)


def cudnn(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B L H D"],
    value: Float[Array, "B L H D"],
    segment_ids: Int[Array, "B L"] | None,
    causal: bool,
) -> Float[Array, "B L H D"]:
    """cuDNN's flash attention. It has no segments, so that they become an array of B L L bits.

    Raises:
      ConfigError: no GPU, or float32.
    """
    platform, _ = hardware()
    if platform not in GPUS or query.dtype == jnp.float32:
        raise ConfigError(
            f"model.attention 'cudnn' cannot compute in {query.dtype} on {platform}; it wants "
            "bfloat16 on a GPU: set model.attention to 'auto'"
        )

    def kernel(query: Array, key: Array, value: Array, segment_ids: Array | None) -> Array:
        same = None
        if segment_ids is not None:
            same = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
        return jax.nn.dot_product_attention(
            query, key, value, mask=same, is_causal=causal, scale=1.0, implementation="cudnn"
        )

    return _on_every_device(kernel, query, key, value, segment_ids)


def _padded(kernel: Kernel) -> Kernel:
    """The kernel for any number of tokens, with or without segments."""

    def run(query: Array, key: Array, value: Array, segment_ids: Array | None) -> Array:
        length = query.shape[1]
        missing = -length % BLOCK
        if segment_ids is None:
            segment_ids = jnp.zeros(query.shape[:2], jnp.int32)
        if missing:
            rows = [(0, 0), (0, missing)]
            segment_ids = jnp.pad(segment_ids, rows, constant_values=_NOWHERE)
            query, key, value = (jnp.pad(x, [*rows, (0, 0), (0, 0)]) for x in (query, key, value))
        return kernel(query, key, value, segment_ids)[:, :length]

    return run


def _on_every_device(
    kernel: Kernel, query: Array, key: Array, value: Array, segment_ids: Array | None
) -> Array:
    """Runs the kernel on each device's own rows and heads, as nobody can cut a kernel in two.

    Axes of the mesh that do not divide the rows or the heads hold copies of them.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def axes(names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
        found = tuple(name for name in names if name in mesh.axis_names)
        return found if size % math.prod(mesh.shape[name] for name in found) == 0 else None

    if not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types):
        rows = axes(("slice", "data", "fsdp"), query.shape[0])
        place = PartitionSpec(rows, None, axes(("tensor",), query.shape[2]), None)
        kernel = jax.shard_map(
            kernel,
            in_specs=(place, place, place, PartitionSpec(rows, None)),
            out_specs=place,
            check_vma=False,  # kernels do not say how what they give varies
        )
    return kernel(query, key, value, segment_ids)
