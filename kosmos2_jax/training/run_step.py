"""What the updates of a run are made of: made here for training and for compiling ahead of time.

Both call these functions, so that what `kosmos2 compile` tells is true of what `train.py` runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.models.lora import with_adapters
from kosmos2_jax.partitioning import batch_sharding
from kosmos2_jax.training.groups import ParameterGroups
from kosmos2_jax.training.optimizer import make_optimizer
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.state import TrainState, create_state, run_groups, state_shardings
from kosmos2_jax.training.step import Batch, Sums, make_train_step


@dataclasses.dataclass(frozen=True)
class RunStep:
    """The update of a run, and what it works on.

    Attributes:
      model: the contract.
      groups: what is trained.
      optimizer: of the trained parameters.
      shardings: of the state.
      rows: sharding of a batch.
      shapes: shape, dtype and sharding of each array of the state.
      update: the compiled update, see `kosmos2_jax.training.step.make_train_step`.
    """

    model: Kosmos2Model
    groups: ParameterGroups
    optimizer: optax.GradientTransformation
    shardings: TrainState
    rows: NamedSharding
    shapes: TrainState
    update: Callable[[TrainState, Batch], tuple[TrainState, Sums]]


def make_run_step(run: RunConfig, mesh: Mesh, num_tasks: int) -> RunStep:
    """The update of a run; no array is made.

    Args:
      run: its settings, with the size of the vocabulary.
      mesh: of the run, which is the ambient one too (`jax.set_mesh`), as the model places its
        activations by that.
      num_tasks: tasks that the feature `task_ids` of a batch tells apart.

    Raises:
      ConfigError: groups or adapters that fit no parameter, or a parameter that does not fit the
        mesh.
    """
    model = run_model(run, num_tasks)
    groups = run_groups(run)
    optimizer = make_optimizer(run.optimizer, groups)
    shardings, rows = state_shardings(run, optimizer, mesh), batch_sharding(mesh)
    shapes = jax.eval_shape(lambda: create_state(run, optimizer, shardings))
    return RunStep(
        model,
        groups,
        optimizer,
        shardings,
        rows,
        jax.tree.map(_placed, shapes, shardings),
        make_train_step(
            with_adapters(model.loss_fn, run.lora),
            optimizer,
            shardings,
            rows,
            run.seed,
            run.micro_batches,
            groups,
            run.ema_decay,
        ),
    )


def run_model(run: RunConfig, num_tasks: int = 0) -> Kosmos2Model:
    """The model of a run, answering as its evaluations do."""
    sampling = SamplingConfig(
        max_new_tokens=run.evaluation.max_new_tokens,
        no_repeat_ngram_size=run.no_repeat_ngram_size,
    )
    return Kosmos2Model(run.model, sampling, run.loss_chunk, num_tasks)


def batch_shapes(run: RunConfig, rows: NamedSharding | None = None) -> Batch:
    """Shapes and dtypes of the batch of an update, see `kosmos2_jax.inference.model`.

    Args:
      run: settings.
      rows: sharding of a batch.
    """
    data, side = run.data, run.model.vision.image_size
    places = data.batch_size, data.length
    names = ("tokens", "targets", "positions", "segment_ids", "image_slots", "task_ids")
    shapes = {name: jax.ShapeDtypeStruct(places, jnp.int32) for name in names}
    shapes["loss_weights"] = jax.ShapeDtypeStruct(places, jnp.float32)
    pictures = data.batch_size, data.images, side, side, 3
    shapes["images"] = jax.ShapeDtypeStruct(pictures, jnp.uint8)
    return {name: _placed(shape, rows) for name, shape in shapes.items()}


def _placed(x: jax.ShapeDtypeStruct, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
