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
from kosmos2_jax.models.lora import add_adapters, merge_adapters
from kosmos2_jax.models.vision_transformer import VisionTransformer
from kosmos2_jax.partitioning import make_mesh, param_shardings
from kosmos2_jax.training.groups import ParameterGroups, find_groups
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.processes import host_values, place
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
      ema: average of the trained parameters, if the run has one.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    skipped_in_row: jax.Array
    ema: Any = ()


def boxed_params(run: RunConfig) -> dict[str, Any]:
    """Fresh parameters of a run, adapters included, in boxes with their logical axis names."""
    key = jax.random.key(run.seed)
    boxed = initial_params(run.model, key)
    return add_adapters(boxed, run.lora, jax.random.fold_in(key, 1)) if run.lora.rank else boxed


def run_groups(run: RunConfig) -> ParameterGroups:
    """The groups of a run's parameters.

    Raises:
      ConfigError: see `find_groups` and `add_adapters`.
    """
    shapes = nn.meta.unbox(jax.eval_shape(lambda: boxed_params(run)))
    return find_groups(run.optimizer.groups, shapes)


def state_shardings(
    run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The sharding of every array of the state; moments and averages lie as their parameters do."""
    boxed = jax.eval_shape(lambda: boxed_params(run))
    shapes = nn.meta.unbox(boxed)
    groups = find_groups(run.optimizer.groups, shapes)
    params = param_shardings(boxed, mesh)
    trained = groups.trained_shardings(params)
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(lambda params: optimizer.init(groups.trained(params)), shapes),
        trained,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, params, opt_state, everywhere, trained if run.ema_decay else ())


def create_state(
    run: RunConfig, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """Fresh values of `run.seed`; no array exists before it has its place."""

    def create() -> TrainState:
        params = nn.meta.unbox(boxed_params(run))
        if run.warm_start.steps:
            params = place_vision(params, run.model)
        zero = jnp.zeros([], jnp.int32)
        trained = find_groups(run.optimizer.groups, params).trained(params)
        ema = trained if run.ema_decay else ()
        return TrainState(zero, params, optimizer.init(trained), zero, ema)

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
        tower for itself, on one device.
    """
    optimizer = OptimizerConfig(
        learning_rate=run.warm_start.learning_rate,
        warmup_steps=run.warm_start.steps // 10,
        total_steps=run.warm_start.steps,
    )
    whole = host_values(state.params)
    with jax.set_mesh(make_mesh({}, jax.local_devices()[:1])):
        fresh = jax.tree.map(jnp.asarray, whole)
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
    return with_params(run, state, place(jax.device_get(params), shardings.params))


def with_params(run: RunConfig, state: TrainState, params: Any) -> TrainState:
    """A fresh state that begins from other parameters, whose average begins there too."""
    if not run.ema_decay:
        return state._replace(params=params)
    trained = find_groups(run.optimizer.groups, params).trained(params)
    # Arrays of its own: the update gives away those of the parameters.
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, trained))


def averaged_params(run: RunConfig, state: TrainState) -> Any:
    """The parameters that are evaluated and exported, adapters apart: the average if there is one.

    Arrays may be those of the state.
    """
    if not run.ema_decay:
        return state.params

    def merged(params: Any, ema: Any) -> Any:
        return find_groups(run.optimizer.groups, params).merged(params, ema)

    return jax.jit(merged)(state.params, state.ema)


def model_params(run: RunConfig, state: TrainState) -> Any:
    """Parameters of the plain model: `averaged_params` with adapters added to their kernels."""
    params = averaged_params(run, state)
    if not run.lora.rank:
        return params
    return jax.jit(lambda params: merge_adapters(params, run.lora.scale))(params)
