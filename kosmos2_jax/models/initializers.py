"""Initial values of the published code (spec 1.10), which are torch's defaults in most places."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_linear(fan_in: int, gain: float = 1.0) -> Initializer:
    """`torch.nn.Linear`'s default for weight and bias alike: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return uniform(gain / math.sqrt(fan_in))


def xavier_uniform(fan_in: int, fan_out: int, gain: float = 1.0) -> Initializer:
    """Glorot and Bengio's uniform with a gain."""
    return uniform(gain * math.sqrt(6.0 / (fan_in + fan_out)))


def magneto_gain(num_layers: int) -> float:
    """Factor of value, output and feed-forward weights and biases: sqrt(ln 2N) (Magneto, 2.3)."""
    return math.sqrt(math.log(2 * num_layers))
