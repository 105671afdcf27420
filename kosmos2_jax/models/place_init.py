"""Initial values from which a model without pretrained vision learns to find places.

With the reference's values the resampler attends to its own latents first, since the vision
tower's states have length 1 and the latents a length of sqrt(E): from nothing, on a small machine,
that stalls. Here each latent starts out looking at one place of the picture. The model is the
same, and everything stays trainable. This is this project's own choice; whoever starts from
pretrained vision does not need it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.resampler import Resampler

_CONTENT_SCALE = 3.0  # of the patch embedding: contents must outweigh places in what is read
_LATENT_LENGTH = 0.02  # short, so that no latent is attended to
_SHARPEST = 12.0  # spread of the first attention scores; more would hardly let it move again


def place_vision(params: dict[str, Any], config: Kosmos2Config) -> dict[str, Any]:
    """A copy of fresh parameters whose vision tower can tell places apart from the first step.

    Half of the channels begin as places, the other half as contents.

    Args:
      params: unboxed parameters.
      config: architecture.
    """
    grid, width = config.vision.grid, config.vision.hidden_size
    vision = dict(params["vision"])
    vision["position_embedding"] = jnp.asarray(np.pad(place_codes(grid, width), ((1, 0), (0, 0))))
    is_content = jnp.arange(width) < width // 2
    kernel = vision["patch_embedding"]["kernel"]
    vision["patch_embedding"] = {"kernel": jnp.where(is_content, kernel * _CONTENT_SCALE, 0.0)}
    return {**params, "vision": vision}


def place_codes(grid: int, width: int) -> Float[np.ndarray, "P D"]:
    """Sines and cosines of column and row in the second half of the channels, row-major.

    The frequencies are evenly spaced, which makes different rows, and different columns, nearly
    orthogonal.
    """
    rates = np.pi * np.arange(1, width // 8 + 1) / (width // 8)
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    waves = [
        wave(axis.reshape(-1, 1) * rates) for axis in (columns, rows) for wave in (np.sin, np.cos)
    ]
    codes = np.concatenate(waves, axis=1)
    return np.pad(codes, ((0, 0), (width - codes.shape[1], 0))).astype(np.float32)


def place_latents(
    params: dict[str, Any],
    config: Kosmos2Config,
    key: jax.Array,
    states: Float[np.ndarray, "B T D"],
) -> dict[str, Any]:
    """A copy of parameters in which latent (row, column) attends to its part of the picture.

    The score between a latent and a patch becomes Fisher's discriminant: how much the patch's
    state looks like the mean state of the place that the latent stands for, against what varies
    from picture to picture.

    Args:
      params: unboxed parameters.
      config: architecture; the number of latents must be a square.
      key: random key.
      states: of the vision tower for some pictures, class token first.

    Raises:
      ConfigError: the latents do not form a square grid.
    """
    side = math.isqrt(config.resampler.num_latents)
    if side * side != config.resampler.num_latents:
        raise ConfigError(
            f"init 'places' needs a square number of latents, not {config.resampler.num_latents}"
        )
    grid, decoder = config.vision.grid, config.decoder
    head_dim = decoder.hidden_size // decoder.num_heads
    means, reader = _discriminant(np.asarray(states[:, 1:], np.float64), head_dim)
    steps = ((np.arange(side) + 0.5) * grid / side).astype(int)
    wanted = means[(steps[:, None] * grid + steps).reshape(-1)]
    scores = (wanted @ reader) @ (means @ reader).T
    sharpness = min(1.0, _SHARPEST / np.ptp(scores, axis=1).mean())

    resampler = dict(params["resampler"])
    shape = resampler["projection"]["kernel"].shape
    # Orthogonal, so that undoing it in the keys loses no digits.
    kernel = jax.nn.initializers.orthogonal(shape[1] ** 0.5)(key, shape, jnp.float32)
    undo = np.linalg.pinv(np.asarray(kernel, np.float64))
    per_head = np.pad(undo @ reader, ((0, 0), (0, head_dim - reader.shape[1])))
    keys = jnp.asarray(np.tile(per_head, (1, decoder.num_heads)), jnp.float32)
    queries = keys * (sharpness * head_dim**0.5 / _LATENT_LENGTH)
    resampler["projection"] = _unbiased(kernel)
    resampler["latents"] = jnp.asarray(wanted, jnp.float32) @ kernel * _LATENT_LENGTH
    resampler["attention"] = {
        **resampler["attention"],
        "key": _unbiased(keys),
        "query": _unbiased(queries),
    }
    resampler["attention"]["out"] = _word_sized(resampler, config, states)
    return {**params, "resampler": resampler}


def _word_sized(
    resampler: dict[str, Any], config: Kosmos2Config, states: Float[np.ndarray, "B T D"]
) -> dict[str, jax.Array]:
    """The output map scaled and shifted so that soft tokens are as long as words, mean zero.

    Longer ones would drown the decoder's positions, which say which place a soft token is of.
    """
    decoder = config.decoder
    module = Resampler(config.resampler, decoder.hidden_size, decoder.num_heads)
    soft = np.asarray(module.apply({"params": resampler}, jnp.asarray(states)))
    mean = soft.mean((0, 1))
    scale = decoder.hidden_size**-0.5 / np.sqrt(np.square(soft - mean).mean())
    out = resampler["attention"]["out"]
    return {"kernel": out["kernel"] * scale, "bias": (out["bias"] - mean) * scale}


def _unbiased(kernel: jax.Array) -> dict[str, jax.Array]:
    return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], jnp.float32)}


def _discriminant(
    states: Float[np.ndarray, "B P D"], size: int
) -> tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "D K"]]:
    """Centred mean state of each place, and a map under which products are discriminants."""
    means = states.mean(0)
    within = (states - means).reshape(-1, states.shape[-1])
    covariance = within.T @ within / len(within)
    ridge = 0.01 * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    whiten = vectors / np.sqrt(values)
    centred = means - means.mean(0)
    directions = np.linalg.svd(centred @ whiten, full_matrices=False)[2]
    return centred, whiten @ directions[: min(size, len(centred) - 1)].T
