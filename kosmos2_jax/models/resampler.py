"""The connector from vision to language: learned queries in one cross-attention (spec 1.3)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kosmos2_jax.config import ResamplerConfig
from kosmos2_jax.models.attention import attend
from kosmos2_jax.models.initializers import xavier_uniform
from kosmos2_jax.models.layers import Linear
from kosmos2_jax.partitioning import constrain


class ResamplerAttention(nn.Module):
    """Latents attend to projected tokens and to themselves; no norm, no residual (trap T-05)."""

    num_heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B N E"],
        keys: Float[Array, "B K E"],
        deterministic: bool,
    ) -> Float[Array, "B N E"]:
        embed = latents.shape[-1]

        def project(name: str, x: Float[Array, "B T E"]) -> Float[Array, "B T H D"]:
            y = Linear(
                embed,
                ("embed", "heads"),
                kernel_init=xavier_uniform(embed, embed, 1 / math.sqrt(2)),
                dtype=self.dtype,
                name=name,
            )(x)
            y = y.reshape(*y.shape[:2], self.num_heads, -1)
            return constrain(y, ("batch", None, "heads", None))

        mixed = attend(
            project("query", latents),
            project("key", keys),
            project("value", keys),
            dropout_rate=self.dropout,
            dropout_key=None if deterministic else self.make_rng("dropout"),
        )
        return Linear(
            embed,
            ("heads", "embed"),
            kernel_init=xavier_uniform(embed, embed),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="out",
        )(mixed)


class Resampler(nn.Module):
    """Token states of a picture to a fixed number of soft tokens of the language model.

    Attributes:
      config: sizes.
      embed_dim: E, hidden size of the decoder.
      num_heads: heads of the decoder, which the connector shares.
      dtype: of the activations.
    """

    config: ResamplerConfig
    embed_dim: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B T D"], *, deterministic: bool = True
    ) -> Float[Array, "B N E"]:
        """Args: features: L2-normalised states of the vision tower."""
        latents = self.param(
            "latents",
            nn.with_logical_partitioning(
                nn.initializers.normal(self.config.latent_init_std), (None, "embed")
            ),
            (self.config.num_latents, self.embed_dim),
        )
        # Both widths are cut over the same devices, so that only one can be.
        projected = Linear(self.embed_dim, (None, "embed"), dtype=self.dtype, name="projection")(
            features
        )
        queries = jnp.broadcast_to(latents.astype(self.dtype), (features.shape[0], *latents.shape))
        keys = jnp.concatenate([projected, queries], axis=1)
        attention = ResamplerAttention(
            self.num_heads, self.config.attention_dropout, self.dtype, name="attention"
        )
        return attention(queries, keys, deterministic)
