"""CLIP's vision transformer as Kosmos-2 uses it (spec 1.2).

Letters: B pictures, S pixels a side, T tokens (class and patches), D hidden size, H heads.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kosmos2_jax.config import AUTO, NONE, VisionConfig
from kosmos2_jax.models.attention import attend
from kosmos2_jax.models.initializers import torch_linear
from kosmos2_jax.models.layers import LayerNorm, Linear, quick_gelu, run_layers
from kosmos2_jax.partitioning import constrain, gather


class VisionAttention(nn.Module):
    """Full self-attention, biases everywhere, no dropout."""

    config: VisionConfig
    dtype: jnp.dtype
    implementation: str = AUTO

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        heads = self.config.num_heads

        def project(name: str) -> Float[Array, "B T H d"]:
            y = Linear(x.shape[-1], ("vision_embed", "vision_heads"), dtype=self.dtype, name=name)(
                x
            )
            y = y.reshape(*y.shape[:2], heads, -1)
            return constrain(y, ("batch", None, "vision_heads", None))

        mixed = attend(
            project("query"),
            project("key"),
            project("value"),
            implementation=self.implementation,
        )
        return Linear(x.shape[-1], ("vision_heads", "vision_embed"), dtype=self.dtype, name="out")(
            mixed
        )


class VisionMlp(nn.Module):
    """Linear, QuickGELU, linear."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        axes = ("vision_embed", "vision_mlp")
        hidden = Linear(self.config.mlp_dim, axes, dtype=self.dtype, name="up")(x)
        hidden = quick_gelu(constrain(hidden, ("batch", None, "vision_mlp")))
        return Linear(x.shape[-1], axes[::-1], dtype=self.dtype, name="down")(hidden)


class VisionLayer(nn.Module):
    """Pre-norm block."""

    config: VisionConfig
    dtype: jnp.dtype
    attention: str = AUTO

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], cache: None) -> tuple[Float[Array, "B T D"], None]:
        epsilon = self.config.layer_norm_epsilon
        norm = LayerNorm("vision_embed", epsilon, self.dtype, name="attention_norm")
        attention = VisionAttention(self.config, self.dtype, self.attention, name="attention")
        x = constrain(x + attention(norm(x)), ("batch", None, None))
        norm = LayerNorm("vision_embed", epsilon, self.dtype, name="mlp_norm")
        x = x + VisionMlp(self.config, self.dtype, name="mlp")(norm(x))
        return constrain(x, ("batch", None, None)), cache


class PatchEmbedding(nn.Module):
    """A convolution with stride equal to its kernel and no bias, as one matrix product."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B P D"]:
        p, g, dim = self.config.patch_size, self.config.grid, self.config.hidden_size
        axes = (None, None, None, "vision_embed")
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(torch_linear(3 * p * p), axes),
            (p, p, 3, dim),
        )
        kernel = gather(kernel, axes, self.dtype)
        patches = pixels.astype(self.dtype).reshape(-1, g, p, g, p, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, g * g, p * p * 3)
        return patches @ kernel.astype(self.dtype).reshape(p * p * 3, dim)


class VisionTransformer(nn.Module):
    """Pixels to L2-normalised token states (spec 1.1, steps 1 to 3)."""

    config: VisionConfig
    scan_layers: bool = False
    dtype: jnp.dtype = jnp.float32
    attention: str = AUTO
    remat: str = NONE

    @nn.compact
    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B T D"]:
        """Class token and patches of the last layer, post-normed, each of length 1 (trap T-04).

        Args:
          pixels: normalised RGB.
        """
        config = self.config
        with jax.named_scope("patches"):
            x = PatchEmbedding(config, self.dtype, name="patch_embedding")(pixels)
            first = self.param(
                "class_embedding",
                nn.with_logical_partitioning(
                    nn.initializers.normal(config.hidden_size**-0.5), ("vision_embed",)
                ),
                (config.hidden_size,),
            )
            first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, x.shape[2]))
            positions = self.param(
                "position_embedding",
                nn.with_logical_partitioning(
                    nn.initializers.normal(config.hidden_size**-0.5), (None, "vision_embed")
                ),
                (config.num_tokens, config.hidden_size),
            )
            x = jnp.concatenate([first, x], axis=1) + positions.astype(self.dtype)
        x = LayerNorm("vision_embed", config.layer_norm_epsilon, self.dtype, name="pre_norm")(x)
        x, _ = run_layers(
            lambda name: VisionLayer(config, self.dtype, self.attention, name=name),
            config.num_layers,
            self.scan_layers,
            self.remat,
            x,
            None,
        )
        x = LayerNorm("vision_embed", config.layer_norm_epsilon, jnp.float32, name="post_norm")(x)
        # As torch's F.normalize, the norm is at least 1e-12; maximum() under the root keeps the
        # gradient finite at zero.
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(self.dtype)
