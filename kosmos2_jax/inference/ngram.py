"""The rule against repeated n-grams, part of the reference's behaviour (spec 4.8, trap T-15).

Letters: B rows, T places of a static token buffer, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Variants: the official generator leaves the first generated token alone and goes on after an
# `</s>` in that place; transformers applies the rule from the first generated token on.
OFFICIAL = "official"
HUGGING_FACE = "hugging_face"
VARIANTS = (OFFICIAL, HUGGING_FACE)


def repeated_ngrams(
    history: Int[Array, "B T"], lengths: Int[Array, " B"], vocab_size: int, sizes: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """Tokens that would complete an n-gram which a row holds already.

    Everything in the row counts: prompt, the ids that stand for pictures, location tokens. So
    two phrases of one output never begin with the same upper left cell.

    Args:
      history: prompt and generated tokens from place 0; the rest of the buffer is ignored.
      lengths: tokens in each row.
      vocab_size: V.
      sizes: n of each row; 0 for no such rule.
    """
    rows, places = history.shape
    place = jnp.arange(places)[None]
    sizes = sizes[:, None]
    hits = (sizes > 0) & (place >= sizes - 1) & (place < lengths[:, None])

    def compare(offset: Array, hits: Array) -> Array:
        """Keeps places before which, that far back, stands what stands there at the row's end."""
        last = jnp.take_along_axis(history, jnp.clip(lengths[:, None] - offset, 0), axis=1)
        return hits & ((jnp.roll(history, offset, axis=1) == last) | (offset >= sizes))

    hits = jax.lax.fori_loop(1, jnp.max(sizes), compare, hits)
    blocked = jnp.zeros((rows, vocab_size), bool)
    return blocked.at[jnp.arange(rows)[:, None], history].max(hits)
