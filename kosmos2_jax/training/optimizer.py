"""The reference's optimiser and schedule (spec 4.6) as optax transformations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kosmos2_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled decay on every tensor; defaults are Kosmos-2's pretraining (K2 table 8).

    Attributes:
      learning_rate: at the end of warm-up.
      warmup_steps: updates of linear warm-up; the first update has learning rate 0.
      total_steps: the rate falls linearly to 0 at this update.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment before bias correction (trap T-27).
      weight_decay: of every parameter, norms and biases included.
      clip_norm: largest global norm of the gradient.
      factors: of the learning rate, by beginning of the path of a parameter ("vision",
        "decoder/token_embedding"); the longest that fits counts, and 1 where none does.
    """

    learning_rate: float = 2e-4
    warmup_steps: int = 375
    total_steps: int = 60_000
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 2.0
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up from 0, then linear decay to 0 at `total_steps`; 0-based updates."""
    decay_steps = max(config.total_steps - config.warmup_steps, 1)

    def schedule(update):
        update = jnp.asarray(update, jnp.float32)
        warm = update / max(config.warmup_steps, 1)
        decay = 1.0 - (update - config.warmup_steps) / decay_steps
        return config.learning_rate * jnp.clip(jnp.minimum(warm, decay), 0.0, 1.0)

    return schedule


def clip_gradient(max_norm: float) -> optax.GradientTransformation:
    """Scales by `max_norm / (norm + 1e-6)` where that is below 1, as fairseq."""

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(max_norm / (optax.global_norm(grads) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class AdamState(NamedTuple):
    """Number of updates done and the moments."""

    count: jax.Array
    first: optax.Updates
    second: optax.Updates


def scale_by_reference_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """`sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`: epsilon before bias correction."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        del params
        b1, b2 = config.beta1, config.beta2
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, grads)
        count = state.count + 1
        t = count.astype(jnp.float32)
        size = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(
            lambda m, v: size * m / (jnp.sqrt(v) + config.epsilon), first, second
        )
        return updates, AdamState(count, first, second)

    return optax.GradientTransformation(init, update)


def updates_made(opt_state: optax.OptState) -> int:
    """Number of updates that a state of `make_optimizer` has seen; skipped ones do not count."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, AdamState))
    return next(int(part.count) for part in parts if isinstance(part, AdamState))


def scale_by_part(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by the factor of their part of the model, see `OptimizerConfig`.

    Raises:
      ConfigError: a name that no parameter's path begins with.
    """

    def update(updates, params=None):
        del params
        unused = set(factors)

        def scale(path, value):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            fitting = [name for name in factors if f"{path}/".startswith(f"{name}/")]
            unused.difference_update(fitting)
            return value * factors[max(fitting, key=len)] if fitting else value

        scaled = jax.tree_util.tree_map_with_path(scale, updates)
        if unused:
            raise ConfigError(
                f"optimizer.factors names {', '.join(sorted(unused))}, but the model's parts are "
                f"{', '.join(sorted(updates))} and what lies in them"
            )
        return scaled

    return optax.stateless(update)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam, decay and the schedule, in the reference's order."""
    return optax.chain(
        clip_gradient(config.clip_norm),
        scale_by_reference_adam(config),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
        scale_by_part(config.factors),
    )
