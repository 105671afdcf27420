"""Scaled dot-product attention: one function, and the choice of what computes it.

Letters of the einsums: B batch, Q queries, K keys, L tokens, H heads, D size of a head.

| implementation | where               | masks                         | held in memory          |
|----------------|---------------------|-------------------------------|-------------------------|
| xla            | everywhere          | any; dropout; cross-attention | B H L L                 |
| splash         | TPU (Pallas)        | causal, segments              | nothing                 |
| triton         | GPU (Pallas)        | causal, segments              | nothing                 |
| cudnn          | GPU, half precision | causal; segments as an array  | B L L, without segments |
|                |                     |                               | nothing                 |

All keep the softmax in float32 (spec 1.6). The kernels are in `attention_kernels`.
"""

from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import AUTO, CUDNN, SPLASH, TRITON, XLA
from kosmos2_jax.models import attention_kernels
from kosmos2_jax.models.attention_kernels import BLOCK

# Bytes of scores from which a CPU attends to each row by itself: scores of one stay in its caches.
# Eight pictures of 257 tokens take half the time.
_BY_ROW = 2**24
# Bytes of a row's scores from which its heads go in parts, one for each core: XLA runs them side by
# side, which for pictures takes half the time of sharing each product among the cores.
_BY_PART = 2**21
# TPUs before v4 do not compile splash attention.
_NO_SPLASH = ("TPU v2", "TPU v3")


def attend(
    query: Float[Array, "B Q H D"],
    key: Float[Array, "B K H D"],
    value: Float[Array, "B K H D"],
    *,
    segment_ids: Int[Array, "B Q"] | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str = AUTO,
) -> Float[Array, "B Q H*D"]:
    """Softmax attention with the softmax in float32 (spec 1.6) and heads concatenated.

    Self-attention is told what it may see by `segment_ids` and `causal`, from which no mask of
    Q x K entries need be made.

    Args:
      query: unscaled; 1/sqrt(D) is applied here, bias included (trap T-40).
      key: keys.
      value: values.
      segment_ids: tokens see tokens with the same number only.
      causal: tokens see themselves and earlier ones only.
      dropout_rate: of the probabilities; needs `dropout_key`.
      dropout_key: random key, or None for no dropout.
      implementation: one of `kosmos2_jax.config.ATTENTIONS`. With dropout or cross-attention it
        is always "xla". Pallas kernels run in Pallas' interpreter, slowly, on
        hardware that is not theirs.

    Raises:
      ConfigError: the implementation cannot run on this hardware.
    """
    dropping = dropout_key is not None and dropout_rate > 0.0
    if dropping or query.shape[1] != key.shape[1]:
        implementation = XLA
    elif implementation == AUTO:
        implementation = choose(query, segment_ids)
    query = query * query.shape[-1] ** -0.5
    if implementation == XLA:
        rate = dropout_rate if dropping else 0.0
        mixed = _attend_xla(query, key, value, segment_ids, causal, rate, dropout_key)
    else:
        kernel = getattr(attention_kernels, implementation)
        mixed = kernel(query, key, value, segment_ids, causal)
    return mixed.reshape(*mixed.shape[:2], -1)


def attend_cached(
    query: Float[Array, "B Q H D"],
    key: Float[Array, "B H K D"],
    value: Float[Array, "B H K D"],
    mask: Bool[Array, "B Q K"],
) -> Float[Array, "B Q H*D"]:
    """As `attend`, of keys and values that lie as in `kosmos2_jax.models.decoder.LayerCache`.

    Args:
      query: unscaled.
      key: keys.
      value: values.
      mask: True where a query may look; a query that may look nowhere gets a finite mean.
    """
    scaled = (query * query.shape[-1] ** -0.5).transpose(0, 2, 1, 3)
    mixed = _mix(scaled, key, value, mask).transpose(0, 2, 1, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def choose(query: Float[Array, "B L H D"], segment_ids: Int[Array, "B L"] | None) -> str:
    """The implementation for a self-attention, by hardware, length, size of a head and dtype.

    The hardware is that of the ambient mesh (`jax.set_mesh`), which may be one that is only
    compiled for, else JAX's default. On TPU also the vision tower's 257 tokens, padded to 384,
    go through splash attention: 2.2 times the products of its attention are still 6% of the
    tower's, and its scores (4 MiB a picture and layer) never travel to memory.
    """
    platform, kind = attention_kernels.hardware()
    if query.shape[1] < BLOCK or query.shape[-1] not in (64, 128):
        return XLA
    if platform == "tpu" and kind not in _NO_SPLASH:
        return SPLASH
    if platform in attention_kernels.GPUS and query.dtype in (jnp.bfloat16, jnp.float16):
        return CUDNN if segment_ids is None else TRITON
    return XLA


def _attend_xla(
    query: Float[Array, "B Q H D"],
    key: Float[Array, "B K H D"],
    value: Float[Array, "B K H D"],
    segment_ids: Int[Array, "B Q"] | None,
    causal: bool,
    dropout_rate: float,
    dropout_key: Array | None,
) -> Float[Array, "B Q H D"]:
    rows, queries, heads = query.shape[:3]
    of_row = 4 * heads * queries * key.shape[1]
    on_cpu = attention_kernels.hardware()[0] == "cpu" and not dropout_rate
    if on_cpu and rows > 1 and rows * of_row > _BY_ROW:

        def attend_row(row: tuple[Array, Array, Array, Array | None]) -> Array:
            alone = jax.tree.map(lambda x: x[None], row)
            return _attend_xla(*alone, causal, dropout_rate, dropout_key)[0]

        return jax.lax.map(attend_row, (query, key, value, segment_ids))
    mask = None
    if segment_ids is not None:
        mask = segment_ids[:, :, None] == segment_ids[:, None, :]
    if causal:
        earlier = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))[None]
        mask = earlier if mask is None else mask & earlier
    # Heads go before tokens, so that both products are plain batched matrix products, which run
    # up to three times as fast on CPU.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    parts = math.gcd(heads, os.cpu_count() or 1) if on_cpu and of_row > _BY_PART else 1
    mixed = [
        _mix(*part, mask, dropout_rate, dropout_key)
        for part in zip(*(jnp.split(x, parts, axis=1) for x in (query, key, value)), strict=True)
    ]
    return jnp.concatenate(mixed, axis=1).transpose(0, 2, 1, 3)


def _mix(
    query: Float[Array, "B H Q D"],
    key: Float[Array, "B H K D"],
    value: Float[Array, "B H K D"],
    mask: Bool[Array, "#B Q K"] | None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "B H Q D"]:
    scores = jnp.einsum("BHQD,BHKD->BHQK", query, key).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1)
    if dropout_rate:
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("BHQK,BHKD->BHQD", probabilities.astype(value.dtype), value)


def cache_mask(slots: Int[Array, "B L"], cache_length: int) -> Bool[Array, "B L K"]:
    """A token in cache slot s sees slots 0..s, which hold its row's earlier tokens."""
    return jnp.arange(cache_length)[None, None, :] <= slots[:, :, None]
