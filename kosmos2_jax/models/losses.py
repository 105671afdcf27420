"""Cross-entropy as the published criterion takes it (spec 4.5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(logits: Float[Array, "B L V"], targets: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Negative log-likelihood of each target, float32, in nats."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def weighted_sums(
    values: Float[Array, "B L"], weights: Float[Array, "B L"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of weighted values and sum of weights; their quotient over a whole update is its mean."""
    return jnp.sum(values * weights), jnp.sum(weights)
