"""Two kinds of positions: absolute sinusoids (released weights) and xPos (the papers' claim).

Spec: 1.5. Sources: fairseq `SinusoidalPositionalEmbedding`; xPos, "A Length-Extrapolatable
Transformer" (Sun et al. 2022), section 2.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# fairseq's table keeps row 1 for padding, so that the first real token has row 2 (trap T-02).
FIRST_ROW = 2

_XPOS_GAMMA = 0.4
_XPOS_SCALE_BASE = 512.0


def sinusoidal_embedding(positions: Int[Array, "B L"], dim: int) -> Float[Array, "B L {dim}"]:
    """Absolute position vectors, float32.

    Args:
      positions: 0-based index of each token in its example.
      dim: size of a vector; the first half holds sines, the second half cosines.
    """
    half = dim // 2
    # The exponent's denominator is half - 1, as in tensor2tensor (trap T-02).
    exponents = np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1))
    # float32 products as the reference's, but exp correctly rounded: NumPy's float32 exp is off by
    # up to 2 ulp, which at position 4,096 moves an angle by 5e-4.
    rates = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (positions + FIRST_ROW).astype(jnp.float32)[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def apply_xpos(
    x: Float[Array, "B L H D"], positions: Int[Array, "B L"], *, is_key: bool
) -> Float[Array, "B L H D"]:
    """Rotates queries or keys and scales them so that products depend on the distance alone.

    The product of a query at m and a key at n carries the factor
    `((2k + 0.4 D) / (1.4 D)) ** ((m - n) / 512)` for pair k of dimensions, which lets attention
    fade smoothly with distance beyond the length seen in training.

    Args:
      x: queries or keys, D even.
      positions: 0-based index of each token in its example.
      is_key: keys take the inverse scale.
    """
    dim = x.shape[-1]
    pair = np.arange(dim // 2, dtype=np.float32)
    rates = np.float32(10000.0) ** (-pair / (dim // 2))
    scale = (2 * pair + _XPOS_GAMMA * dim) / ((1 + _XPOS_GAMMA) * dim)
    place = positions.astype(jnp.float32)[..., None, None]
    angles = place * rates
    power = place / _XPOS_SCALE_BASE * (-1.0 if is_key else 1.0)
    factor = jnp.exp(power * np.log(scale))
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
