"""The reference's optimiser and schedule (spec 4.6) as optax transformations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kosmos2_jax.config import build_dataclass
from kosmos2_jax.training.groups import ParameterGroup, ParameterGroups


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
      groups: learning rates, decay and freezing of parts of the model, by name of the group; see
        `groups.find_groups`.
    """

    learning_rate: float = 2e-4
    warmup_steps: int = 375
    total_steps: int = 60_000
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 2.0
    groups: Mapping[str, ParameterGroup] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = {
            # Configuration files give plain mappings.
            name: build_dataclass(ParameterGroup, group, f"optimizer.groups.{name}.")
            if isinstance(group, Mapping)
            else group
            for name, group in self.groups.items()
        }
        object.__setattr__(self, "groups", groups)


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


def scale_by_reference_adam(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`: epsilon before bias correction.

    With the extra argument `finite`, a scalar, the state stays what it was where that is False.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None, *, finite=True, **others):
        del params, others
        b1, b2 = config.beta1, config.beta2

        def move(beta, old, new):
            # Chosen here, not by the caller: XLA on CPU would compute the update from copies of
            # the old moments beside the new ones.
            return jnp.where(finite, beta * old + (1 - beta) * new, old)

        first = jax.tree.map(lambda m, g: move(b1, m, g), state.first, grads)
        second = jax.tree.map(lambda v, g: move(b2, v, g * g), state.second, grads)
        count = state.count + jnp.asarray(finite, jnp.int32)
        t = count.astype(jnp.float32)
        size = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(
            lambda m, v: size * m / (jnp.sqrt(v) + config.epsilon), first, second
        )
        return updates, AdamState(count, first, second)

    return optax.GradientTransformationExtraArgs(init, update)


def updates_made(opt_state: optax.OptState) -> int:
    """Number of updates that a state of `make_optimizer` has seen; skipped ones do not count."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, AdamState))
    return next(int(part.count) for part in parts if isinstance(part, AdamState))


def add_decay(weight_decay: float, groups: ParameterGroups) -> optax.GradientTransformation:
    """Adds decay times parameters, the decay being that of their group or else `weight_decay`."""

    def decay_of(group: ParameterGroup) -> float:
        return weight_decay if group.weight_decay is None else group.weight_decay

    def update(updates, params):
        decays = groups.numbers(updates, decay_of)
        return jax.tree.map(lambda u, p, decay: u + decay * p, updates, params, decays)

    return optax.stateless(update)


def scale_by_group(groups: ParameterGroups) -> optax.GradientTransformation:
    """Multiplies updates by the factor of their group."""

    def update(updates, params=None):
        del params
        factors = groups.numbers(updates, lambda group: group.learning_rate_factor)
        return jax.tree.map(lambda u, factor: u * factor, updates, factors)

    return optax.stateless(update)


def make_optimizer(
    config: OptimizerConfig, groups: ParameterGroups | None = None
) -> optax.GradientTransformation:
    """Clipping, Adam, decay and the schedule, in the reference's order.

    Args:
      config: settings.
      groups: what `find_groups` made of `config.groups`; the transformation then works on trees of
        what they train (`ParameterGroups.trained`). None for trees of any kind, all with the same
        settings.

    Raises:
      ValueError: `config` has groups, but no `groups` are given.
    """
    stages = [clip_gradient(config.clip_norm), scale_by_reference_adam(config)]
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config))
    if groups is None:
        if config.groups:
            raise ValueError("a config with groups needs those that find_groups makes of it")
        return optax.chain(*stages, optax.add_decayed_weights(config.weight_decay), rate)
    return optax.chain(
        *stages, add_decay(config.weight_decay, groups), rate, scale_by_group(groups)
    )
