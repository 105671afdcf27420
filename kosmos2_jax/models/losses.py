"""Cross-entropy as the published criterion takes it (spec 4.5)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def token_losses(logits: Float[Array, "B L V"], targets: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Negative log-likelihood of each target, float32, in nats."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


class TargetScores(NamedTuple):
    """What a loss needs to know of each target.

    Attributes:
      losses: negative log-likelihoods, float32, in nats.
      best: whether no other token is preferred.
    """

    losses: Float[Array, "B L"]
    best: Bool[Array, "B L"]


def score_targets(
    hidden: Float[Array, "B L E"],
    table: Float[Array | np.ndarray, "V E"],
    targets: Int[Array, "B L"],
    chunk: int = 0,
) -> TargetScores:
    """Scores targets under the tied head, without ever holding the logits of all tokens.

    Logits are made for some tokens of each row at a time, and made again for the gradient.

    Args:
      hidden: final states of the decoder.
      table: of token embeddings.
      targets: token ids.
      chunk: tokens of a row at a time; 0 for all.
    """
    length = targets.shape[1]
    if not 0 < chunk < length:
        return _score(hidden, table, targets)
    missing = -length % chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    def score(part: tuple[Array, Array]) -> TargetScores:
        return _score(part[0], table, part[1])

    parts = jax.lax.map(jax.checkpoint(score), (split(hidden), split(targets)))
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1)[:, :length],
        parts,
    )


def _score(
    hidden: Float[Array, "B L E"],
    table: Float[Array | np.ndarray, "V E"],
    targets: Int[Array, "B L"],
) -> TargetScores:
    logits = tied_logits(hidden, table)
    # Comparing with the maximum is several times as fast on CPU as an argmax.
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    best = jax.lax.stop_gradient(chosen >= jnp.max(logits, axis=-1))
    return TargetScores(token_losses(logits, targets), best)


def tied_logits(
    hidden: Float[Array, "B L E"], table: Float[Array | np.ndarray, "V E"]
) -> Float[Array, "B L V"]:
    """Scores over the vocabulary, float32: the tied table, no bias, no scale (trap T-10)."""
    with jax.named_scope("head"):
        return jnp.einsum("BLE,VE->BLV", hidden, table.astype(hidden.dtype)).astype(jnp.float32)


def weighted_sums(
    values: Float[Array, "B L"], weights: Float[Array, "B L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of weighted values and sum of weights; their quotient over a whole update is its mean."""
    return jnp.sum(values * weights), jnp.sum(weights)
