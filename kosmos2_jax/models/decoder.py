"""The Magneto (sub-LN) decoder (spec 1.4) with a functional key-value cache.

Letters: B batch, L tokens, T cache slots, E hidden size, H heads, D size of a head, V vocabulary
(padded, see `DecoderConfig.vocab_multiple`).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import AUTO, NONE, SINUSOIDAL, XPOS, DecoderConfig
from kosmos2_jax.models.attention import attend, attend_cached
from kosmos2_jax.models.attention_kernels import hardware
from kosmos2_jax.models.initializers import magneto_gain
from kosmos2_jax.models.layers import LayerNorm, Linear, gelu, run_layers
from kosmos2_jax.models.losses import tied_logits
from kosmos2_jax.models.positions import apply_xpos, sinusoidal_embedding
from kosmos2_jax.models.products import Kernel, as_kernel, rows_of
from kosmos2_jax.partitioning import constrain


class LayerCache(NamedTuple):
    """Keys and values of one layer; keys are rotated already when positions are xPos.

    Heads go before slots, as the products of attention want them: else every step would copy the
    whole cache.
    """

    key: Float[Array, "B H T D"]
    value: Float[Array, "B H T D"]

    def write(
        self,
        key: Float[Array, "B L H D"],
        value: Float[Array, "B L H D"],
        slots: Int[Array, "B L"] | None,
    ) -> LayerCache:
        """The cache with new tokens in their slots, or in the first ones if `slots` is None."""
        if slots is not None and slots.size == 1 and hardware()[0] == "cpu":
            # XLA would make a slice's update of the only one, merge it with what reads the cache,
            # and copy the cache for both, a tenth of a step. Another one, to a slot that there is
            # not, which drops it, keeps XLA from that.
            key, value = (jnp.concatenate([new, new], axis=1) for new in (key, value))
            slots = jnp.concatenate([slots, jnp.full_like(slots, self.key.shape[2])], axis=1)

        def put(old: Float[Array, "B H T D"], new: Float[Array, "B L H D"]) -> Array:
            new = new.astype(old.dtype)
            if slots is None:
                return jax.lax.dynamic_update_slice(old, new.transpose(0, 2, 1, 3), (0, 0, 0, 0))
            return old.at[jnp.arange(len(new))[:, None], :, slots].set(new, mode="drop")

        return LayerCache(put(self.key, key), put(self.value, value))


# One LayerCache a layer, or, with scanned layers, one whose arrays have a leading layer axis.
Cache = tuple[LayerCache, ...] | LayerCache


def empty_cache(
    config: DecoderConfig, batch: int, length: int, *, scan_layers: bool = False, dtype=jnp.float32
) -> Cache:
    """A cache of zeros for `batch` rows of up to `length` tokens."""
    shape = (batch, config.num_heads, length, config.hidden_size // config.num_heads)
    if scan_layers:
        shape = (config.num_layers, *shape)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        for _ in range(config.num_layers)
    )


class Context(NamedTuple):
    """What every layer of one call shares.

    Attributes:
      positions: 0-based index of each token in its example.
      segment_ids: without a cache, example of each token: it sees the earlier ones of its own.
      mask: with a cache, True where a token may look.
      slots: with a cache, slot of each token in it. None, as `mask`, if the cache is empty: tokens
        take the first slots, and see themselves and the earlier ones.
    """

    positions: Int[Array, "B L"]
    segment_ids: Int[Array, "B L"] | None = None
    mask: Bool[Array, "B L T"] | None = None
    slots: Int[Array, "B L"] | None = None


class DecoderAttention(nn.Module):
    """Self-attention with a LayerNorm before the output projection (`inner_attn_ln`)."""

    config: DecoderConfig
    dtype: jnp.dtype
    implementation: str = AUTO

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], cache: LayerCache | None, context: Context
    ) -> tuple[Float[Array, "B L E"], LayerCache | None]:
        config = self.config
        gain = magneto_gain(config.num_layers)

        def project(name: str, gain: float = 1.0) -> Float[Array, "B L H D"]:
            y = Linear(
                config.hidden_size, ("embed", "heads"), gain=gain, dtype=self.dtype, name=name
            )(x)
            y = y.reshape(*y.shape[:2], config.num_heads, -1)
            return constrain(y, ("batch", None, "heads", None))

        query, key, value = project("query"), project("key"), project("value", gain)
        if config.position == XPOS:
            query = apply_xpos(query, context.positions, is_key=False)
            key = apply_xpos(key, context.positions, is_key=True)
        if cache is not None:
            cache = cache.write(key, value, context.slots)
        if cache is not None and context.mask is not None:
            mixed = attend_cached(query, cache.key, cache.value, context.mask)
        else:
            mixed = attend(
                query,
                key,
                value,
                segment_ids=context.segment_ids,
                causal=True,
                implementation=self.implementation,
            )
        mixed = constrain(mixed, ("batch", None, "heads"))
        norm = LayerNorm("heads", config.layer_norm_epsilon, self.dtype, name="inner_norm")
        out = Linear(
            config.hidden_size, ("heads", "embed"), gain=gain, dtype=self.dtype, name="out"
        )
        return out(norm(mixed)), cache


class DecoderMlp(nn.Module):
    """Linear, exact GELU in float32, LayerNorm, linear (trap T-06, T-08)."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        config = self.config
        gain, axes = magneto_gain(config.num_layers), ("embed", "mlp")
        hidden = Linear(config.mlp_dim, axes, gain=gain, dtype=self.dtype, name="up")(x)
        hidden = constrain(hidden, ("batch", None, "mlp"))
        hidden = gelu(hidden.astype(jnp.float32)).astype(self.dtype)
        hidden = LayerNorm("mlp", config.layer_norm_epsilon, self.dtype, name="norm")(hidden)
        return Linear(x.shape[-1], axes[::-1], gain=gain, dtype=self.dtype, name="down")(hidden)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each pre-normed and added to the residual stream."""

    config: DecoderConfig
    dtype: jnp.dtype
    deterministic: bool
    attention: str = AUTO

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], cache: LayerCache | None, context: Context
    ) -> tuple[Float[Array, "B L E"], LayerCache | None]:
        epsilon = self.config.layer_norm_epsilon
        dropout = nn.Dropout(self.config.dropout, deterministic=self.deterministic)
        norm = LayerNorm("embed", epsilon, self.dtype, name="attention_norm")
        attention = DecoderAttention(self.config, self.dtype, self.attention, name="attention")
        with jax.named_scope("attention"):
            mixed, cache = attention(norm(x), cache, context)
        x = constrain(x + dropout(mixed), ("batch", None, None))
        norm = LayerNorm("embed", epsilon, self.dtype, name="mlp_norm")
        with jax.named_scope("mlp"):
            x = x + dropout(DecoderMlp(self.config, self.dtype, name="mlp")(norm(x)))
        return constrain(x, ("batch", None, None)), cache


class Decoder(nn.Module):
    """Token embedding, positions, layers, final norm and the tied head."""

    config: DecoderConfig
    scan_layers: bool = False
    dtype: jnp.dtype = jnp.float32
    attention: str = AUTO
    remat: str = NONE

    def setup(self) -> None:
        config = self.config
        # Initial values N(0, 1/E), the pad row (id 1) zero, as fairseq's Embedding.
        normal = nn.initializers.normal(config.hidden_size**-0.5)

        def create(*args) -> Float[Array, "V E"]:
            return normal(*args).at[1].set(0.0).at[config.vocab_size :].set(0.0)

        self.token_embedding = self.get_variable("params", "token_embedding")
        if not isinstance(self.token_embedding, Kernel):
            self.token_embedding = self.param(
                "token_embedding",
                nn.with_logical_partitioning(create, ("vocab", "embed")),
                (config.padded_vocab_size, config.hidden_size),
            )

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """Unscaled rows of the embedding table."""
        rows = rows_of(as_kernel(self.token_embedding), tokens, self.dtype)
        return constrain(rows, ("batch", None, None))

    @nn.compact
    def __call__(
        self,
        embeddings: Float[Array, "B L E"],
        context: Context,
        cache: Cache | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B L E"], Cache | None]:
        """Final hidden states and the updated cache.

        Args:
          embeddings: unscaled token or picture vectors; scaled by sqrt(E) here, pictures too
            (trap T-03).
          context: positions, and what each token may see.
          cache: keys and values of earlier tokens.
          deterministic: no dropout.
        """
        config = self.config
        x = embeddings * jnp.asarray(config.hidden_size**0.5, self.dtype)
        if config.position == SINUSOIDAL:
            positions = sinusoidal_embedding(context.positions, config.hidden_size)
            x = x + positions.astype(self.dtype)
        x = nn.Dropout(config.dropout, deterministic=deterministic)(x)
        x, cache = run_layers(
            lambda name: DecoderLayer(config, self.dtype, deterministic, self.attention, name=name),
            config.num_layers,
            self.scan_layers,
            self.remat,
            x,
            cache,
            context,
        )
        x = LayerNorm("embed", config.layer_norm_epsilon, self.dtype, name="final_norm")(x)
        return x, cache

    def logits(self, hidden: Float[Array, "B L E"]) -> Float[Array, "B L V"]:
        """Scores over the vocabulary, see `kosmos2_jax.models.losses.tied_logits`."""
        table = self.token_embedding
        if hardware()[0] == "cpu":
            table = as_kernel(table)
        return tied_logits(hidden, table, self.config.vocab_size)
