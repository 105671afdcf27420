"""One update: loss of a batch, its gradient, the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from kosmos2_jax.partitioning import constrain
from kosmos2_jax.training.groups import ParameterGroups, find_groups
from kosmos2_jax.training.optimizer import AdamState
from kosmos2_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]
# (params, batch, dropout key) -> (sum of weighted losses, sums to report); "weight" among them.
LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Sums]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    batch_sharding: NamedSharding,
    seed: int,
    micro_batches: int = 1,
    groups: ParameterGroups | None = None,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled update. The old state is donated; metrics stay on the device.

    The loss is the mean over all target tokens of the update, whatever row, micro-batch or device
    they come from (trap T-26). Dropout of update `u` follows from (seed, u) alone, so that a
    resumed run repeats it.

    An update whose loss or gradient norm is not finite is skipped, which metric `skipped` tells
    (1 or 0; `skipped_in_row`: how many since the last that was not). Parameters, their average and
    the optimiser's state, with its count of updates, stay what they were, as with fairseq's
    overflows and `optax.apply_if_finite`. So moments and their bias correction stay true, and the
    schedule waits. The batch is spent nevertheless: `step` goes on, and with it dropout and the
    data.

    Args:
      loss_fn: sums over the rows it is given.
      optimizer: of the parameters; told as an extra argument, `finite`, if the update counts.
      shardings: of the state.
      batch_sharding: of the batch.
      seed: of dropout.
      micro_batches: parts that a batch is worked through in, one after the other; each device's
        rows must be divisible by it, see `kosmos2_jax.partitioning.check_mesh`.
      groups: what is trained, and whose gradient norms are reported beside that of all, as
        `gradient_norm/NAME`; by default everything is, part by part.
      ema_decay: of the average of the trained parameters, see `RunConfig`; 0 for none.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        among = find_groups({}, state.params) if groups is None else groups
        old, places = among.trained(state.params), among.trained_shardings(shardings.params)

        def loss_of_trained(trained: Any, *args: Any) -> tuple[jax.Array, Sums]:
            # Frozen parameters are constants here, so that nothing is computed for their gradient.
            return _with_loss(*loss_fn(among.merged(state.params, trained), *args))

        def placed_grads(*args: Any) -> tuple[Any, Sums]:
            # As the parameters, so that a device sums up its own share only.
            grads, sums = jax.grad(loss_of_trained, has_aux=True)(*args)
            return jax.lax.with_sharding_constraint(grads, places), sums

        grads, sums = _token_mean(placed_grads, old, batch, dropout_key, micro_batches)
        loss = sums.pop("loss") / sums["weight"]
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, old, finite=finite)
        new = optax.apply_updates(old, updates)
        ema = optax.incremental_update(new, state.ema, 1 - ema_decay) if ema_decay else state.ema

        def choose(after: Any, before: Any) -> Any:
            return after if isinstance(after, AdamState) else jnp.where(finite, after, before)

        # A choice of values, not a branch, so that it melts into the update and old and new
        # arrays still share their memory. Adam has been told `finite` and has chosen itself.
        new, opt_state, ema = jax.tree.map(
            choose,
            (new, opt_state, ema),
            (old, state.opt_state, state.ema),
            is_leaf=lambda part: isinstance(part, AdamState),
        )
        skipped = jnp.logical_not(finite).astype(jnp.int32)
        in_row = (state.skipped_in_row + 1) * skipped
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "skipped": skipped,
            "skipped_in_row": in_row,
            **{f"gradient_norm/{name}": value for name, value in among.norms(grads).items()},
            **sums,
        }
        params = among.merged(state.params, new)
        return TrainState(state.step + 1, params, opt_state, in_row, ema), metrics

    everywhere = NamedSharding(batch_sharding.mesh, PartitionSpec())
    return jax.jit(
        update,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def _with_loss(loss: jax.Array, sums: Sums) -> tuple[jax.Array, Sums]:
    return loss, {"loss": loss, **sums}


def _token_mean(
    grad_fn: Callable[..., tuple[Any, Sums]],
    params: Any,
    batch: Batch,
    dropout_key: jax.Array,
    micro_batches: int,
) -> tuple[Any, Sums]:
    """Gradient of the mean over all target tokens of a batch, and sums of its metrics."""
    if micro_batches == 1:
        grads, sums = grad_fn(params, batch, dropout_key)
    else:
        grads, sums = _accumulate(grad_fn, params, batch, dropout_key, micro_batches)
    # XLA on CPU would write quotients to memory; a product melts into all that reads it.
    share = 1.0 / sums["weight"]
    return jax.tree.map(lambda g: g * share, grads), sums


def _accumulate(
    grad_fn: Callable[..., tuple[Any, Sums]],
    params: Any,
    batch: Batch,
    dropout_key: jax.Array,
    parts: int,
) -> tuple[Any, Sums]:
    """Sums of gradients and metrics over `parts` micro-batches."""

    def split(x: jax.Array) -> jax.Array:
        # Every parts-th row, so that each device splits its own rows and none travel.
        x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, (None, "batch") + (None,) * (x.ndim - 2))

    def add(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, micro_batch = part
        found = grad_fn(params, micro_batch, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, total, found), None

    micro = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micro)
    shapes = jax.eval_shape(grad_fn, params, first, dropout_key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), micro))[0]
