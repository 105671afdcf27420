"""Kosmos-2: vision tower, resampler and decoder, with pictures spliced into the text (spec 1.1).

Letters: B batch, L tokens, N pictures a row, S pixels a side, P soft tokens of a row's pictures
(N times the number of latents), E hidden size of the decoder, V vocabulary (padded, see
`kosmos2_jax.config.DecoderConfig.vocab_multiple`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from kosmos2_jax.config import IMAGE_MEAN, IMAGE_STD, Kosmos2Config
from kosmos2_jax.models.attention import cache_mask
from kosmos2_jax.models.decoder import Cache, Context, Decoder, LayerCache
from kosmos2_jax.models.resampler import Resampler
from kosmos2_jax.models.vision_transformer import VisionTransformer
from kosmos2_jax.partitioning import constrain


def normalize_images(
    images: UInt8[Array, "*batch S S 3"] | Float[Array, "*batch S S 3"],
) -> Float[Array, "*batch S S 3"]:
    """uint8 RGB to CLIP-normalised float32; floats are taken to be normalised already."""
    if images.dtype != jnp.uint8:
        return images
    mean, std = np.float32(IMAGE_MEAN), np.float32(IMAGE_STD)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


class Kosmos2(nn.Module):
    """The whole model; `__call__` for training and scoring, `extend` for generation."""

    config: Kosmos2Config

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        layers = (config.scan_layers, dtype, config.attention, config.remat)
        self.vision = VisionTransformer(config.vision, *layers)
        self.resampler = Resampler(
            config.resampler, config.decoder.hidden_size, config.decoder.num_heads, dtype
        )
        self.decoder = Decoder(config.decoder, *layers)

    def encode_images(self, images: Array, *, deterministic: bool = True) -> Float[Array, "B P E"]:
        """Soft tokens of every picture of a row, in order.

        Args:
          images: [B, N, S, S, 3], uint8 or normalised float.
          deterministic: no dropout.
        """
        batch, number = images.shape[:2]
        flat = normalize_images(images.reshape(batch * number, *images.shape[2:]))
        flat = constrain(flat, ("batch", None, None, None))
        with jax.named_scope("vision"):
            features = self.vision(flat)
        with jax.named_scope("resampler"):
            soft = self.resampler(features, deterministic=deterministic)
        return constrain(soft.reshape(batch, -1, soft.shape[-1]), ("batch", None, None))

    def embed(
        self,
        tokens: Int[Array, "B L"],
        soft_tokens: Float[Array, "B P E"] | None = None,
        image_slots: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L E"]:
        """Embedding rows, overwritten by picture vectors where `image_slots` is not negative.

        An overwritten token has no influence and gets no gradient (spec 1.8).
        """
        x = self.decoder.embed(tokens)
        if soft_tokens is None or image_slots is None:
            return x
        index = jnp.clip(image_slots, 0)[..., None]
        pictures = jnp.take_along_axis(soft_tokens.astype(x.dtype), index, axis=1)
        return constrain(jnp.where(image_slots[..., None] >= 0, pictures, x), ("batch", None, None))

    def __call__(self, *features: Any, **settings: Any) -> Float[Array, "B L V"]:
        """Scores of the next token at every position, float32; arguments as of `hidden`.

        Those of the vocabulary's padding are -inf.
        """
        return self.logits(self.hidden(*features, **settings))

    def hidden(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        segment_ids: Int[Array, "B L"],
        images: Array | None = None,
        image_slots: Int[Array, "B L"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B L E"]:
        """Final states of the decoder, of which `logits` makes scores.

        Args:
          tokens: token ids; whatever stands at picture slots is ignored.
          positions: 0-based index of each token in its example.
          segment_ids: example of each token in the row, 0 for padding.
          images: [B, N, S, S, 3] uint8 or normalised float; None for text alone.
          image_slots: soft token that stands at each position, -1 for text.
          deterministic: no dropout; else an rng named "dropout" is needed.
        """
        soft = None
        if images is not None and images.shape[1]:
            soft = self.encode_images(images, deterministic=deterministic)
        x = self.embed(tokens, soft, image_slots)
        context = Context(positions, segment_ids)
        with jax.named_scope("decoder"):
            hidden, _ = self.decoder(x, context, deterministic=deterministic)
        return hidden

    def extend(
        self,
        tokens: Int[Array, "B L"],
        slots: Int[Array, "B L"] | None,
        cache: Cache,
        soft_tokens: Float[Array, "B P E"] | None = None,
        image_slots: Int[Array, "B L"] | None = None,
        *,
        positions: Int[Array, "B L"] | None = None,
        mask: Bool[Array, "B L T"] | None = None,
    ) -> tuple[Float[Array, "B L E"], Cache]:
        """Hidden states of new tokens after those in the cache, and the cache with them added.

        By default a row's tokens fill its slots from 0 without gaps, so that the slot is also the
        position and rows of different lengths need no correction (trap T-07). Where a row holds
        several continuations of one prompt, `positions` and `mask` say where each token stands
        and which slots it sees. Scores come from `logits`.

        Args:
          tokens: token ids.
          slots: slot of each token in the cache; None if it is empty and tokens take the first
            ones: they then need not be read back from it.
          cache: keys and values of earlier tokens.
          soft_tokens: of the pictures among the tokens.
          image_slots: soft token that stands at each position, -1 for text.
          positions: 0-based index of each token in its text; the slot if None.
          mask: True at slots that a token sees, its own included; if None those up to its own.
        """
        length = (cache.key if isinstance(cache, LayerCache) else cache[0].key).shape[-2]
        x = self.embed(tokens, soft_tokens, image_slots)
        if slots is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            return self.decoder(x, Context(positions), cache)
        if positions is None:
            positions = slots
        if mask is None:
            mask = cache_mask(slots, length)
        context = Context(positions, mask=mask, slots=slots)
        return self.decoder(x, context, cache)

    def logits(self, hidden: Float[Array, "B L E"]) -> Float[Array, "B L V"]:
        """Scores over the vocabulary, float32, -inf where it is padding."""
        return self.decoder.logits(hidden)


def initial_params(config: Kosmos2Config, key: Array) -> dict[str, Any]:
    """Fresh parameters, each in a box that carries its logical axis names.

    `nn.meta.unbox` gives the bare arrays; under `jax.eval_shape` nothing is allocated.

    Args:
      config: architecture.
      key: random key.
    """
    size = config.vision.image_size
    tokens = jnp.zeros((1, 1), jnp.int32)
    images = jnp.zeros((1, 1, size, size, 3), jnp.float32)
    return Kosmos2(config).init(key, tokens, tokens, tokens, images, tokens)["params"]
