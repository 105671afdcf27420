"""Cross-entropy as the published criterion takes it (spec 4.5)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.models.products import Kernel, product, trained_product
from kosmos2_jax.partitioning import constrain, gather


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
    table: Float[Array | np.ndarray, "V E"] | Kernel,
    targets: Int[Array, "B L"],
    chunk: int = 0,
    vocab_size: int | None = None,
) -> TargetScores:
    """Scores targets under the tied head, without ever holding the logits of all tokens.

    Logits are made for some tokens of each row at a time, and made again for the gradient.

    Args:
      hidden: final states of the decoder.
      table: of token embeddings.
      targets: token ids.
      chunk: tokens of a row at a time; 0 for all.
      vocab_size: see `tied_logits`.
    """
    length = targets.shape[1]
    # Once, not for each chunk; in float32 again, in which the chunks' gradients are summed up.
    if not isinstance(table, Kernel):
        table = gather(jnp.asarray(table), ("vocab", "embed"), hidden.dtype).astype(table.dtype)
    if not 0 < chunk < length:
        return _score(hidden, table, targets, vocab_size)
    missing = -length % chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    def score(part: tuple[Array, Array]) -> TargetScores:
        return _score(part[0], table, part[1], vocab_size)

    parts = jax.lax.map(jax.checkpoint(score), (split(hidden), split(targets)))
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1)[:, :length],
        parts,
    )


def _score(
    hidden: Float[Array, "B L E"],
    table: Float[Array | np.ndarray, "V E"] | Kernel,
    targets: Int[Array, "B L"],
    vocab_size: int | None,
) -> TargetScores:
    logits = tied_logits(hidden, table, vocab_size)
    # Comparing with the maximum is several times as fast on CPU as an argmax.
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    best = jax.lax.stop_gradient(chosen >= jnp.max(logits, axis=-1))
    return TargetScores(token_losses(logits, targets), best)


def tied_logits(
    hidden: Float[Array, "B L E"],
    table: Float[Array | np.ndarray, "V E"] | Kernel,
    vocab_size: int | None = None,
) -> Float[Array, "B L V"]:
    """Scores over the vocabulary, float32: the tied table, no bias, no scale (trap T-10).

    Args:
      hidden: final states of the decoder.
      table: of token embeddings, with any padding of the vocabulary; a kernel for inference.
      vocab_size: rows that are tokens; scores of those behind them, the vocabulary's padding, are
        -inf. None for all.
    """
    with jax.named_scope("head"):
        flat = hidden.reshape(-1, hidden.shape[-1])
        if isinstance(table, Kernel):
            flat = product(flat, table, hidden.dtype)
        else:
            flat = trained_product(flat, jnp.asarray(table, hidden.dtype).T)
        logits = flat.reshape(*hidden.shape[:-1], -1)
        logits = constrain(logits, ("batch", None, "vocab")).astype(jnp.float32)
        rows = logits.shape[-1]
        if vocab_size in (None, rows):
            return logits
        return jnp.where(jnp.arange(rows) < vocab_size, logits, -jnp.inf)


def weighted_sums(
    values: Float[Array, "B L"], weights: Float[Array, "B L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of weighted values and sum of weights; their quotient over a whole update is its mean."""
    return jnp.sum(values * weights), jnp.sum(weights)
