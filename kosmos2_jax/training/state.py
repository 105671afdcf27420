"""What changes from update to update, and its birth straight into shardings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.models.grounded_init import ground, place_vision
from kosmos2_jax.models.kosmos2 import initial_params, normalize_images
from kosmos2_jax.models.vision_transformer import VisionTransformer
from kosmos2_jax.partitioning import param_shardings
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.processes import host_values
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.vision_warm_start import train_vision


class TrainState(NamedTuple):
    """What a checkpoint holds beside the place in the data.

    Attributes:
      step: number of batches done, int32.
      params: unboxed parameters, float32.
      opt_state: the optimiser's state.
      skipped_in_row: how many of the last updates were skipped, int32; here, so that neither
        restarts nor the time when metrics are read change what counts as a row.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    skipped_in_row: jax.Array


def state_shardings(
    run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The sharding of every array of the state; moments lie as their parameters do."""
    boxed = jax.eval_shape(lambda: initial_params(run.model, jax.random.key(0)))
    params = param_shardings(boxed, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, nn.meta.unbox(boxed)),
        params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, params, opt_state, everywhere)


def create_state(
    run: RunConfig, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """Fresh values of `run.seed`; no array exists before it has its place."""

    def create() -> TrainState:
        params = nn.meta.unbox(initial_params(run.model, jax.random.key(run.seed)))
        if run.warm_start.steps:
            params = place_vision(params, run.model)
        zero = jnp.zeros([], jnp.int32)
        return TrainState(zero, params, optimizer.init(params), zero)

    return jax.jit(create, out_shardings=shardings)()


def warm_up(
    run: RunConfig,
    state: TrainState,
    shardings: TrainState,
    vocabulary: Kosmos2Vocabulary,
    batches: Iterator[Mapping[str, np.ndarray]],
) -> TrainState:
    """The fresh state with the tower warm-started and the rest grounded in it.

    Args:
      run: settings.
      state: from `create_state`.
      shardings: of the state.
      vocabulary: of the batches.
      batches: training batches of its own; the same on all processes, each of which trains the
        tower for itself.
    """
    optimizer = OptimizerConfig(
        learning_rate=run.warm_start.learning_rate,
        warmup_steps=run.warm_start.steps // 10,
        total_steps=run.warm_start.steps,
    )
    fresh = state.params if jax.process_count() == 1 else host_values(state.params)
    vision, heads = train_vision(fresh["vision"], run.model, vocabulary, batches, optimizer)
    images = normalize_images(jnp.asarray(next(batches)["images"][:, 0]))
    tower = VisionTransformer(run.model.vision, run.model.scan_layers)
    params = ground(
        {**fresh, "vision": vision},
        run.model,
        jax.random.key(run.seed),
        np.asarray(tower.apply({"params": vision}, images)),
        heads,
        vocabulary.first_location_id,
    )
    return state._replace(params=jax.device_put(jax.device_get(params), shardings.params))
