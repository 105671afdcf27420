"""The model, the tasks and the feature converter inside the real t5x.

`python -m t5x.train`, `t5x.eval` and `t5x.infer` of a t5x checkout run with the gin files in
`configs/gin/t5x/`. t5x is not on the package index, and nothing else here needs it; proven with
commit cc342d4, see the README.

What t5x does otherwise than our trainer: it takes dropout keys, seeds and shuffling from itself,
gives the data no place in a checkpoint unless `SaveCheckpointConfig.save_dataset` says so, and does
not skip updates that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import freeze
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.partitioning import LOGICAL_RULES

try:
    from t5x import metrics as t5x_metrics
    from t5x import models as t5x_models
    from t5x import optimizers as t5x_optimizers
except ModuleNotFoundError as missing:
    _MISSING: ModuleNotFoundError | None = missing
    BaseModel: Any = object
    OptaxWrapper: Any = object
else:
    _MISSING = None
    BaseModel = t5x_models.BaseModel
    OptaxWrapper = t5x_optimizers.OptaxWrapper


class T5xModel(BaseModel):
    """`kosmos2_jax.inference.model.Kosmos2Model` as t5x wants a model.

    Attributes:
      contract: the model.
      FEATURE_CONVERTER_CLS: makes the feature converter, as t5x asks for it.
    """

    def __init__(
        self,
        contract: Any,
        converter: Callable[..., Any],
        optimizer: optax.GradientTransformation,
    ) -> None:
        """Puts the parts together.

        Args:
          contract: a `Kosmos2Model`.
          converter: `PackingFeatureConverter` with all arguments given but `pack`.
          optimizer: of the parameters, with its schedule; t5x's own learning rate is only logged.

        Raises:
          Kosmos2Error: t5x or something it imports is missing.
        """
        if _MISSING is not None:
            raise Kosmos2Error(
                f"t5x cannot be imported, for {_MISSING.name!r} is missing: put a checkout of t5x "
                "and tools/t5x_stubs on PYTHONPATH and install the extra 't5x'"
            )
        super().__init__(optimizer_def=OptaxOptimizer(optimizer))
        self.contract = contract
        self.FEATURE_CONVERTER_CLS = feature_converters(converter)

    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any]:
        """Fresh parameters and the names of their axes, {"params", "params_axes"}."""
        del input_shapes, input_types  # the config knows all shapes
        return initial_variables(initial_params(self.contract.config, rng))

    def loss_fn(
        self, params: Any, batch: Mapping[str, Any], dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        """The mean loss of the batch's weighted targets, in nats, and t5x's metrics.

        Gradients of t5x's micro-batches are added up, which would make a sum of means of it: leave
        `Trainer.num_microbatches` at None.
        """
        total, sums = self.contract.loss_fn(params, batch, dropout_rng)
        mean = total / sums["weight"]
        rows = jnp.array(batch["tokens"].shape[0])
        average = t5x_metrics.clu_metrics.Average
        metrics = {
            "loss": t5x_metrics.AveragePerStep.from_model_output(mean),
            "loss_per_target": average(total=total, count=sums["weight"]),
            "accuracy": average(total=sums["correct"], count=sums["weight"]),
            "timing/seqs_per_second": t5x_metrics.TimeRate.from_model_output(numerator=rows),
            "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
            "timing/seconds": t5x_metrics.Time(),
        }
        return mean, metrics

    def predict_batch_with_aux(
        self, params: Any, batch: Mapping[str, Any], rng: jax.Array | None = None
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """What the model writes after each prompt, int32 [B, M], and {"scores": float32 [B]}."""
        del rng  # nothing is drawn
        written = self.contract.predict_batch(params, batch)
        return written.tokens, {"scores": jnp.sum(written.log_probs, axis=-1)}

    def score_batch(
        self, params: Any, batch: Mapping[str, Any], return_intermediates: bool = False
    ) -> jax.Array:
        """Log-likelihood of each row's weighted targets, float32 [B], in nats."""
        if return_intermediates:
            raise Kosmos2Error("score_batch has no intermediates to return: do not ask for them")
        return self.contract.score_batch(params, batch)


class OptaxOptimizer(OptaxWrapper):
    """Any optax transformation whose moments lie as their parameters do, in t5x.

    t5x's own wrapper knows the states of optax's transformations one by one, and so not ours.
    """

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """The optimiser with the names of axes for arrays, None for what has none."""
        axes = jax.tree.map(lambda leaf: None, optimizer.state_dict())
        state = state_axes(self.optax_optimizer, optimizer.state.param_states, param_logical_axes)
        axes["target"] = param_logical_axes
        axes["state"]["param_states"] = t5x_optimizers.serialization.to_state_dict(state)
        return optimizer.restore_state(t5x_optimizers.frozen_dict.unfreeze(axes))


def state_axes(
    optimizer: optax.GradientTransformation, state: optax.OptState, axes: Any
) -> optax.OptState:
    """The names of the axes of an optimiser's state.

    Args:
      optimizer: which made the state.
      state: its state, of arrays or their shapes.
      axes: names of the parameters' axes, a leaf for each.

    Returns:
      The state with `axes` for what is shaped like parameters, None for all else.
    """
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, names: names, state, axes, transform_non_params=lambda _: None
    )


def initial_variables(boxed: Mapping[str, Any]) -> Mapping[str, Any]:
    """t5x's variables of parameters that carry the names of their axes in boxes.

    Args:
      boxed: (abstract) parameters in their `nn.LogicallyPartitioned` boxes.

    Returns:
      {"params": plain parameters, "params_axes": an `AxisMetadata` for each, under its name with
      `_axes` behind it}; of axes without a name, the name is None.
    """
    params = nn.meta.unbox(boxed)
    specs = flatten_dict(nn.get_partition_spec(boxed))
    axes = {
        (*path[:-1], f"{path[-1]}_axes"): AxisMetadata(
            names=tuple(specs[path]) + (None,) * (leaf.ndim - len(specs[path]))
        )
        for path, leaf in flatten_dict(params).items()
    }
    return freeze({"params": params, "params_axes": unflatten_dict(axes)})


def feature_converters(converter: Callable[..., Any]) -> Callable[..., Any]:
    """What t5x calls to make a feature converter.

    Args:
      converter: takes `pack`.
    """

    def make(pack: bool = False, use_custom_packing_ops: bool = False) -> Any:
        if use_custom_packing_ops:
            raise Kosmos2Error("there are no custom packing ops: set use_custom_packing_ops=False")
        return converter(pack=pack)

    return make


def logical_axis_rules(parameter_dims: int = 1) -> list[tuple[str, str | None]]:
    """`kosmos2_jax.partitioning.LOGICAL_RULES` on t5x's mesh, whose axes are "data" and "model".

    Args:
      parameter_dims: 2 cuts parameters over "data" too.

    Raises:
      Kosmos2Error: it is neither 1 nor 2.
    """
    if parameter_dims not in (1, 2):
        raise Kosmos2Error(f"parameter_dims must be 1 or 2, not {parameter_dims}")

    def place(name: str, axes: str | tuple[str, ...] | None) -> str | None:
        if name == "batch":
            return "data"
        if axes == "tensor":
            return "model"
        return "data" if axes == "fsdp" and parameter_dims == 2 else None

    return [(name, place(name, axes)) for name, axes in LOGICAL_RULES]


def mixture_name(
    prepare: Callable[..., tuple[str, Any]],
    folder: str,
    data: Any,
    model: Any,
    seed: int = 0,
    task: str = "",
) -> str:
    """Prepares and registers our data; the name is what t5x's `DatasetConfig` asks for.

    Args:
      prepare: of a module of tasks, as `kosmos2_jax.tasks.mixtures.prepare`.
      folder: where the data lie.
      data: a `DataConfig`.
      model: a `Kosmos2Config`.
      seed: of the data.
      task: one of the tasks that are registered, instead of the mixture.
    """
    mixture, _ = prepare(Path(folder), data, model, seed)
    return task or mixture
