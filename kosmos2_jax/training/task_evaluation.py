"""Evaluation: seqio tasks, answered by the model and scored by the tasks' own metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.pictures import decode_picture
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.training.processes import host_values
from kosmos2_jax.training.run_config import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Figures of one task and what they were made of, in the order of the examples.

    Attributes:
      metrics: by name.
      outputs: markup the model wrote after each prompt.
      predictions: the task's postprocessed outputs.
      targets: the task's postprocessed truth.
      images: first picture of each example, uint8 [S, S, 3].
    """

    metrics: dict[str, float]
    outputs: list[str]
    predictions: list[Any]
    targets: list[Any]
    images: list[np.ndarray]


def evaluate_tasks(
    model: Kosmos2Model,
    params: Any,
    vocabulary: Kosmos2Vocabulary,
    config: EvaluationConfig,
    lengths: Mapping[str, int],
    limit: int = 0,
    split: str = "test",
) -> dict[str, TaskResult]:
    """Runs registered seqio tasks through `seqio.Evaluator`.

    Several processes all read all examples, answer them together, each device with its part of the
    parameters, and all get the same results.

    Args:
      model: the contract; its `sampling` says how answers are written.
      params: unboxed parameters.
      vocabulary: of the model.
      config: tasks, and rows at a time.
      lengths: `kosmos2_jax.data.features.feature_lengths`.
      limit: examples of a task at most, the first ones; 0 for all.
      split: which split to read.

    Returns:
      Result by task.
    """
    return {
        name: _evaluate_task(model, params, vocabulary, config, name, lengths, limit, split)
        for name in config.tasks
    }


def _evaluate_task(
    model: Kosmos2Model,
    params: Any,
    vocabulary: Kosmos2Vocabulary,
    config: EvaluationConfig,
    name: str,
    lengths: Mapping[str, int],
    limit: int,
    split: str,
) -> TaskResult:
    image_size = model.config.vision.image_size
    evaluator = seqio.Evaluator(
        name,
        feature_converter=PackingFeatureConverter(image_size),
        eval_split=split,
        sequence_length=dict(lengths),
        num_examples=limit or None,
    )
    written: dict[int, list[int]] = {}

    def predict(dataset: tf.data.Dataset) -> list[tuple[int, list[int]]]:
        for indices, batch in dataset.batch(config.batch_size).as_numpy_iterator():
            tokens = _answer(model, params, batch, config.batch_size)
            written.update(zip(indices.tolist(), tokens, strict=True))
        # seqio makes one array of all predictions, so that they must be of one length.
        return sorted(written.items())

    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    figures = {name: float(value) for name, value in metrics.result()[name].items()}
    evaluator.close()
    task = seqio.TaskRegistry.get(name)
    examples = list(evaluator.cached_task_datasets[name].as_numpy_iterator())
    outputs = [vocabulary.decode(written[i]) for i in range(len(examples))]
    return TaskResult(
        metrics=figures,
        outputs=outputs,
        predictions=[
            task.postprocess_fn(text, example=example, is_target=False)
            for text, example in zip(outputs, examples, strict=True)
        ],
        targets=[task.postprocess_fn("", example=e, is_target=True) for e in examples],
        images=[decode_picture(example["images"][0], image_size) for example in examples],
    )


def _answer(
    model: Kosmos2Model, params: Any, batch: dict[str, np.ndarray], batch_size: int
) -> list[list[int]]:
    """Tokens written after the prompt of each row, padded to one length."""
    rows = len(batch["tokens"])
    # The last batch is filled up with copies of its last row: one shape, one compilation.
    full = {
        name: np.concatenate([values, np.repeat(values[-1:], batch_size - rows, axis=0)])
        for name, values in batch.items()
    }
    return host_values(model.predict_batch(params, full).tokens)[:rows].tolist()
