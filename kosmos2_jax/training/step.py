"""One update: loss of a batch, its gradient, the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from kosmos2_jax.training.state import TrainState

Batch = dict[str, jax.Array]
# (params, batch, dropout key) -> (sum of weighted losses, sums to report); "weight" among them.
LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    batch_sharding: NamedSharding,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled update. The old state is donated; metrics stay on the device.

    The loss is the mean over all target tokens of the update, whatever row or device they come
    from (trap T-26). Dropout of update `u` follows from (seed, u) alone, so that a resumed run
    repeats it.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def mean_loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            total, sums = loss_fn(params, batch, dropout_key)
            return total / sums["weight"], sums

        (loss, sums), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads), **sums}
        return TrainState(state.step + 1, params, opt_state), metrics

    everywhere = NamedSharding(batch_sharding.mesh, PartitionSpec())
    return jax.jit(
        update,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
