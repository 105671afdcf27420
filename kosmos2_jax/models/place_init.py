"""Initial values from which a model without pretrained vision learns to find places.

With the reference's values the resampler attends to its own latents first, since the vision
tower's states have length 1 and the latents a length of sqrt(E): from nothing, on a small machine,
that stalls. Here each latent starts out looking at one place of the picture. Nothing else about
the model changes, and everything stays trainable. This is this project's own choice; whoever
starts from pretrained vision does not need it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.positions import sincos_grid

_POSITION_SCALE = 3.0  # places must outweigh contents in the tower's first states
_LATENT_SCALE = 0.3  # small, so that no latent attends to latents
_SHARPNESS = 8.0  # of the first attention map


def place_latents(params: dict[str, Any], config: Kosmos2Config, key: jax.Array) -> dict[str, Any]:
    """A copy of fresh parameters in which latent (row, column) attends to its part of the picture.

    Sets the vision tower's position table to scaled 2-D sines and cosines, the connector's
    projection to N(0, 1), the latents to the projected position vectors of a grid of places, and
    the query map to a multiple of the key map, so that like attends to like.

    Args:
      params: unboxed parameters.
      config: architecture; the number of latents must be a square.
      key: random key.

    Raises:
      ConfigError: the latents do not form a square grid.
    """
    side = math.isqrt(config.resampler.num_latents)
    if side * side != config.resampler.num_latents:
        raise ConfigError(
            f"init 'places' needs a square number of latents, not {config.resampler.num_latents}"
        )
    vision, resampler = dict(params["vision"]), dict(params["resampler"])
    grid = config.vision.grid
    table = sincos_grid(grid, config.vision.hidden_size) * _POSITION_SCALE
    vision["position_embedding"] = jnp.asarray(np.pad(table, ((1, 0), (0, 0))))

    shape = resampler["projection"]["kernel"].shape
    kernel = jax.random.normal(key, shape, jnp.float32)
    resampler["projection"] = {"kernel": kernel, "bias": jnp.zeros(shape[1], jnp.float32)}

    steps = ((np.arange(side) + 0.5) * grid / side).astype(int)
    places = table[(steps[:, None] * grid + steps).reshape(-1)] - table.mean(0)
    places = places / np.linalg.norm(places, axis=1, keepdims=True)
    resampler["latents"] = jnp.asarray(places) @ kernel * _LATENT_SCALE

    attention = dict(resampler["attention"])
    like = attention["key"]["kernel"]
    zeros = jnp.zeros(like.shape[1], jnp.float32)
    attention["key"] = {"kernel": like, "bias": zeros}
    attention["query"] = {"kernel": like * (_SHARPNESS / _LATENT_SCALE), "bias": zeros}
    resampler["attention"] = attention
    return {**params, "vision": vision, "resampler": resampler}
