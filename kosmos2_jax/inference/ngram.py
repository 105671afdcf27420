"""The rule against repeated n-grams, part of the reference's behaviour (spec 4.8, trap T-15).

Letters: B rows, T places of a static token buffer, V vocabulary.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Variants: the official generator leaves the first generated token alone and goes on after an
# `</s>` in that place; transformers applies the rule from the first generated token on.
OFFICIAL = "official"
HUGGING_FACE = "hugging_face"
VARIANTS = (OFFICIAL, HUGGING_FACE)


def repeated_ngrams(
    history: Int[Array, "B T"], lengths: Int[Array, " B"], vocab_size: int, size: int
) -> Bool[Array, "B V"]:
    """Tokens that would complete an n-gram which a row holds already.

    Everything in the row counts: prompt, the ids that stand for pictures, location tokens. So
    two phrases of one output never begin with the same upper left cell.

    Args:
      history: prompt and generated tokens from place 0; the rest of the buffer is ignored.
      lengths: tokens in each row.
      vocab_size: V.
      size: n, at least 1.
    """
    rows, places = history.shape
    if places < size:
        return jnp.zeros((rows, vocab_size), bool)
    # The last n - 1 tokens of each row; rows shorter than n get no hit from `inside`.
    last = jnp.clip(lengths[:, None] + jnp.arange(1 - size, 0)[None], 0)
    context = jnp.take_along_axis(history, last, axis=1)
    starts = places - size + 1
    inside = jnp.arange(size - 1, places)[None] < lengths[:, None]
    for offset in range(size - 1):
        inside &= history[:, offset : offset + starts] == context[:, offset, None]
    following = history[:, size - 1 :]
    blocked = jnp.zeros((rows, vocab_size), bool)
    return blocked.at[jnp.arange(rows)[:, None], following].max(inside)
