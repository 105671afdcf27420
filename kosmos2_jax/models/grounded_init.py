"""Initial values from which a model without pretrained parts learns to ground phrases.

From the reference's values that stalls on a small machine, for three reasons, each mended here by
values alone; the model is the same and everything stays trainable. Whoever starts from pretrained
vision and language does not need this; it is the project's own choice.

1. The resampler attends to its own latents first, since the vision tower's states have length 1
   and the latents a length of sqrt(E). Here each latent starts out looking at one place.
2. What the tower sees of a place reaches the decoder as noise. Here soft tokens start out as sums
   of the embeddings of the words, and of the corners, that linear heads read there.
3. The decoder must find out that equal things belong together. Here keys start out as queries
   (as in "Mimetic Initialization of Self-Attention Layers", Trockman and Kolter 2023). What soft
   tokens say is turned by a rotation that keys undo, so that words look for their likes in the
   picture and not at themselves.
4. It must also find out which location tokens are neighbours. Here each starts out as the sum of
   a vector of its column and one of its row.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.resampler import Resampler

_CONTENT_SCALE = 3.0  # of the patch embedding: contents must outweigh places in what is read
_LATENT_LENGTH = 0.02  # short, so that no latent is attended to
_SHARPEST = 12.0  # spread of the first attention scores; more would hardly let it move again
# Of the variance of soft tokens: words, upper left corners, lower right corners, and all else.
_SHARES = (0.5, 0.2, 0.2, 0.1)
_MATCH_GAIN = 2.0  # of queries and keys: a word's likes must stand out from all other tokens


class ReadingHeads(NamedTuple):
    """Linear maps that read, off a patch's state, what is there.

    D hidden size of the tower, V vocabulary, G location cells a side.

    Attributes:
      words: logits of the tokens of phrases in whose boxes the patch lies.
      seen: tokens that occurred in phrases; the columns of others mean nothing.
      corners: logits of the left column, top row, right column and bottom row of such a box.
    """

    words: Float[np.ndarray, "D V"]
    seen: Bool[np.ndarray, " V"]
    corners: Float[np.ndarray, "4 D G"]


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


def ground(
    params: dict[str, Any],
    config: Kosmos2Config,
    key: jax.Array,
    states: Float[np.ndarray, "B T D"],
    heads: ReadingHeads,
    first_location: int,
) -> dict[str, Any]:
    """A copy of parameters whose connector says what the tower sees, where the decoder looks.

    Args:
      params: unboxed parameters; those of the tower are trained already.
      config: architecture; the number of latents must be a square.
      key: random key.
      states: of the vision tower for some pictures, class token first.
      heads: read the tower's states.
      first_location: id of the token of the first location cell.

    Raises:
      ConfigError: the latents do not form a square grid.
    """
    keys = jax.random.split(key, 4)
    size = config.decoder.hidden_size
    turn = np.asarray(jax.nn.initializers.orthogonal()(keys[0], (size, size)), np.float64)
    resampler = _place_latents(params["resampler"], config, keys[1], states)
    axes = _axis_codes(keys[3], config.grid_size, size)
    decoder = _place_locations(params["decoder"], axes, first_location)
    # Without padding of the vocabulary, which nothing says.
    table = np.asarray(decoder["token_embedding"], np.float64)[: config.decoder.vocab_size]
    wanted = _sayings(heads, table, axes, turn, keys[2])
    resampler = _say(resampler, config, keys[2], states, wanted)
    return {**params, "resampler": resampler, "decoder": _match(decoder, turn)}


def _place_latents(
    resampler: dict[str, Any],
    config: Kosmos2Config,
    key: jax.Array,
    states: Float[np.ndarray, "B T D"],
) -> dict[str, Any]:
    """Parameters with which latent (row, column) attends to its part of the picture.

    The score between a latent and a patch becomes Fisher's discriminant: how much the patch's
    state looks like the mean state of the place that the latent stands for, against what varies
    from picture to picture.
    """
    side = math.isqrt(config.resampler.num_latents)
    if side * side != config.resampler.num_latents:
        raise ConfigError(
            f"a warm start needs a square number of latents, not {config.resampler.num_latents}"
        )
    grid, decoder = config.vision.grid, config.decoder
    head_dim = decoder.hidden_size // decoder.num_heads
    means, reader = _discriminant(np.asarray(states[:, 1:], np.float64), head_dim)
    steps = ((np.arange(side) + 0.5) * grid / side).astype(int)
    wanted = means[(steps[:, None] * grid + steps).reshape(-1)]
    scores = (wanted @ reader) @ (means @ reader).T
    sharpness = min(1.0, _SHARPEST / np.ptp(scores, axis=1).mean())

    shape = resampler["projection"]["kernel"].shape
    # Orthogonal, so that undoing it in the keys loses no digits.
    kernel = jax.nn.initializers.orthogonal(shape[1] ** 0.5)(key, shape, jnp.float32)
    undo = np.linalg.pinv(np.asarray(kernel, np.float64))
    per_head = np.pad(undo @ reader, ((0, 0), (0, head_dim - reader.shape[1])))
    keys = np.tile(per_head, (1, decoder.num_heads))
    return {
        **resampler,
        "projection": _unbiased(kernel),
        "latents": jnp.asarray(wanted, jnp.float32) @ kernel * _LATENT_LENGTH,
        "attention": {
            **resampler["attention"],
            "key": _unbiased(keys),
            "query": _unbiased(keys * (sharpness * head_dim**0.5 / _LATENT_LENGTH)),
        },
    }


def _axis_codes(key: jax.Array, grid_size: int, width: int) -> Float[np.ndarray, "2 G E"]:
    """Vectors of columns and rows; sums of one of each are as long as embeddings of words."""
    shape = (2 * grid_size, width)
    codes = np.asarray(jax.nn.initializers.orthogonal(0.5**0.5)(key, shape), np.float64)
    return codes.reshape(2, grid_size, width)


def _place_locations(
    decoder: dict[str, Any], axes: Float[np.ndarray, "2 G E"], first_location: int
) -> dict[str, Any]:
    """Parameters with location tokens that are sums of their column and row."""
    columns, rows = axes
    cells = (rows[:, None] + columns).reshape(-1, columns.shape[-1])
    table = decoder["token_embedding"]
    table = table.at[first_location : first_location + len(cells)].set(cells)
    return {**decoder, "token_embedding": table}


def _sayings(
    heads: ReadingHeads,
    table: Float[np.ndarray, "V E"],
    axes: Float[np.ndarray, "2 G E"],
    turn: Float[np.ndarray, "E E"],
    key: jax.Array,
) -> list[tuple[Float[np.ndarray, "D _"], Float[np.ndarray, "_ E"]]]:
    """What is read off states, and the vector that says each of it."""
    # A softmax does not see what all of its logits share.
    left, top, right, bottom = heads.corners - heads.corners.mean(-1, keepdims=True)
    codes = np.concatenate(axes)
    # Both corners are cells; another rotation tells them apart.
    other = jax.nn.initializers.orthogonal()(jax.random.fold_in(key, 1), turn.shape)
    return [
        (heads.words[:, heads.seen], table[heads.seen] @ turn),
        (np.concatenate([left, top], axis=1), codes @ turn),
        (np.concatenate([right, bottom], axis=1), codes @ np.asarray(other, np.float64)),
    ]


def _say(
    resampler: dict[str, Any],
    config: Kosmos2Config,
    key: jax.Array,
    states: Float[np.ndarray, "B T D"],
    sayings: list[tuple[Float[np.ndarray, "D _"], Float[np.ndarray, "_ E"]]],
) -> dict[str, Any]:
    """Parameters with which soft tokens are sums of sayings, as long as words and of mean zero.

    Longer ones would drown the decoder's positions, which say which place a soft token is of.
    """
    decoder, attention = config.decoder, resampler["attention"]
    projection = np.asarray(resampler["projection"]["kernel"], np.float64)
    patches = np.asarray(states[:, 1:], np.float64).reshape(-1, states.shape[-1])
    patches = patches - patches.mean(0)

    def share(weight: float, mapped: Float[np.ndarray, "D E"]) -> Float[np.ndarray, "D E"]:
        return mapped * np.sqrt(weight / np.square(patches @ mapped).sum(1).mean())

    wanted = share(_SHARES[-1], projection)
    for weight, (read, vectors) in zip(_SHARES, sayings, strict=False):
        spread = np.maximum((patches @ read).std(0), 1e-6 * np.abs(read).max())
        wanted = wanted + share(weight, read / spread @ vectors)
    shape = attention["out"]["kernel"].shape
    out = np.asarray(jax.nn.initializers.orthogonal()(key, shape), np.float64)
    value = np.linalg.pinv(projection) @ wanted @ out.T
    module = Resampler(config.resampler, decoder.hidden_size, decoder.num_heads)
    attention = {**attention, "value": _unbiased(value), "out": _unbiased(out)}
    soft = module.apply({"params": {**resampler, "attention": attention}}, jnp.asarray(states))
    soft = np.asarray(soft, np.float64)
    mean = soft.mean((0, 1))
    scale = decoder.hidden_size**-0.5 / np.sqrt(np.square(soft - mean).mean())
    # Split so that both are of one size: a step of the optimiser then changes both alike.
    first = np.sqrt(scale * np.linalg.norm(out) / np.linalg.norm(value))
    attention = {
        **attention,
        "value": _unbiased(value * first),
        "out": {
            "kernel": jnp.asarray(out * scale / first, jnp.float32),
            "bias": jnp.asarray(-mean * scale, jnp.float32),
        },
    }
    return {**resampler, "attention": attention}


def _match(decoder: dict[str, Any], turn: Float[np.ndarray, "E E"]) -> dict[str, Any]:
    """Parameters whose keys are queries that undo `turn`; layers may be stacked."""

    def matched(layer: dict[str, Any]) -> dict[str, Any]:
        attention = layer["attention"]
        query = attention["query"]["kernel"] * _MATCH_GAIN
        key = jnp.asarray(turn.T, jnp.float32) @ query
        changed = {
            "query": {**attention["query"], "kernel": query},
            "key": {**attention["key"], "kernel": key},
        }
        return {**layer, "attention": {**attention, **changed}}

    return {
        name: matched(part) if name.startswith("layers") else part for name, part in decoder.items()
    }


def _unbiased(kernel: Any) -> dict[str, jax.Array]:
    kernel = jnp.asarray(kernel, jnp.float32)
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
