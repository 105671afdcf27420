"""Evaluation: seqio tasks, answered by the model and scored by the tasks' own metrics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from jax.sharding import NamedSharding

from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.pictures import decode_picture
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model, prompts_of
from kosmos2_jax.inference.prompt_batch import TEXT_SLOT, PromptBatch
from kosmos2_jax.training.processes import (
    data_shard,
    gather,
    global_batch,
    host_values,
    is_first,
)
from kosmos2_jax.training.run_config import EvaluationConfig

# What stands for the number of an example in a row that only fills the batch up.
_NO_EXAMPLE = -1


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Figures of one task and what they were made of, in the order of the examples.

    Of several processes the first has all of it, the others the figures alone.

    Attributes:
      metrics: by name.
      outputs: markup the model wrote after each prompt.
      predictions: the task's postprocessed outputs.
      targets: the task's postprocessed truth.
      images: first picture of each example, uint8 [S, S, 3].
    """

    metrics: dict[str, float]
    outputs: list[str] = dataclasses.field(default_factory=list)
    predictions: list[Any] = dataclasses.field(default_factory=list)
    targets: list[Any] = dataclasses.field(default_factory=list)
    images: list[np.ndarray] = dataclasses.field(default_factory=list)


class TaskEvaluation:
    """Registered seqio tasks, answered by the model and scored by `seqio.Evaluator`.

    Of several processes each prepares its share of the examples, all answer them together, and the
    first scores. What is read of a task is kept for the next time.
    """

    def __init__(
        self,
        model: Kosmos2Model,
        vocabulary: Kosmos2Vocabulary,
        config: EvaluationConfig,
        lengths: Mapping[str, int],
        rows: NamedSharding,
        split: str = "test",
    ) -> None:
        """Reads nothing yet.

        Args:
          model: the contract; its `sampling` says how answers are written.
          vocabulary: of the model.
          config: tasks, and rows at a time; filled up to a multiple of the devices they lie over.
          lengths: `kosmos2_jax.data.features.feature_lengths`.
          rows: sharding of a batch.
          split: which split to read.

        Raises:
          ConfigError: see `kosmos2_jax.training.processes.data_shard`.
        """
        self._model, self._vocabulary, self._config = model, vocabulary, config
        self._lengths, self._rows, self._split = dict(lengths), rows, split
        devices = rows.mesh.size // rows.shard_shape((rows.mesh.size,))[0]
        self._batch_size = -(-config.batch_size // devices) * devices
        self._shard = data_shard(rows, self._batch_size)
        self._converter = PackingFeatureConverter(model.config.vision.image_size)
        self._share = functools.cache(self._read_share)
        self._evaluator = functools.cache(self._open_evaluator)

    def __call__(self, params: Any, limit: int = 0) -> dict[str, TaskResult]:
        """Result by task.

        Args:
          params: unboxed parameters.
          limit: examples of a task at most, the first ones; 0 for all.
        """
        return {name: self._evaluate(params, name, limit) for name in self._config.tasks}

    def _evaluate(self, params: Any, name: str, limit: int) -> TaskResult:
        written = self._answer(params, name, limit)
        result = self._score(written, name, limit) if is_first() else None
        figures = gather(result.metrics if result else None)[0]
        return result or TaskResult(figures)

    def _answer(self, params: Any, name: str, limit: int) -> dict[int, list[int]]:
        """Tokens written after the prompt of each example, by its number."""
        written: dict[int, list[int]] = {}
        batches = self._batches(self._share(name, limit))
        while True:
            numbers, rows = next(batches)
            prompts = prompts_of(rows)
            told = gather([bool((numbers >= 0).any()), prompts.tokens.shape[1]])
            if not any(has_examples for has_examples, _ in told):
                return written
            prompts = _widened(prompts, max(places for _, places in told))
            batch = global_batch({"numbers": numbers, **prompts._asdict()}, self._rows)
            numbers = host_values(batch.pop("numbers"))
            tokens = host_values(self._model.generate(params, PromptBatch(**batch)).tokens)
            found = zip(numbers.tolist(), tokens.tolist(), strict=True)
            written |= {number: row for number, row in found if number != _NO_EXAMPLE}

    def _read_share(self, name: str, limit: int) -> tf.data.Dataset:
        """The examples that this process prepares, as batches of rows; the last may be short."""
        examples = seqio.get_mixture_or_task(name).get_dataset(
            self._lengths, split=self._split, shuffle=False, num_epochs=1
        )
        share = self._batch_size // self._shard.count
        first = self._shard.number * share

        def mine(number: tf.Tensor, example: Any) -> tf.Tensor:
            place = number % self._batch_size
            return (place >= first) & (place < first + share)

        # Encoded pictures are kept; they are decoded each time.
        examples = examples.take(limit or -1).enumerate().filter(mine).map(_second).cache()
        return self._converter(examples, self._lengths).batch(share)

    def _batches(self, share: tf.data.Dataset) -> Iterator[tuple[np.ndarray, Any]]:
        """Numbers of examples and their rows, one shape and so one compilation; without end.

        Others may have examples left when this process has none.
        """
        size = self._batch_size // self._shard.count
        last = {
            name: np.zeros(spec.shape[1:], spec.dtype.as_numpy_dtype)
            for name, spec in share.element_spec.items()
        }
        number = self._shard.number * size
        for batch in share.as_numpy_iterator():
            count = len(batch["tokens"])
            last = {name: values[-1] for name, values in batch.items()}
            filler = _repeated(last, size - count)
            rows = {name: np.concatenate([batch[name], filler[name]]) for name in batch}
            numbers = np.full(size, _NO_EXAMPLE, np.int32)
            numbers[:count] = np.arange(number, number + count)
            yield numbers, rows
            number += self._batch_size
        while True:
            yield np.full(size, _NO_EXAMPLE, np.int32), _repeated(last, size)

    def _open_evaluator(self, name: str, limit: int) -> seqio.Evaluator:
        return seqio.Evaluator(
            name,
            feature_converter=self._converter,
            eval_split=self._split,
            sequence_length=self._lengths,
            num_examples=limit or None,
        )

    def _score(self, written: Mapping[int, list[int]], name: str, limit: int) -> TaskResult:
        evaluator, task = self._evaluator(name, limit), seqio.TaskRegistry.get(name)
        answers = sorted(written.items())
        metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=lambda _: answers)
        examples = list(evaluator.cached_task_datasets[name].as_numpy_iterator())
        outputs = [self._vocabulary.decode(written[i]) for i in range(len(examples))]
        image_size = self._model.config.vision.image_size
        return TaskResult(
            metrics={name: float(value) for name, value in metrics.result()[name].items()},
            outputs=outputs,
            predictions=[
                task.postprocess_fn(text, example=example, is_target=False)
                for text, example in zip(outputs, examples, strict=True)
            ],
            targets=[task.postprocess_fn("", example=e, is_target=True) for e in examples],
            images=[decode_picture(example["images"][0], image_size) for example in examples],
        )


def _second(_: Any, example: Any) -> Any:
    return example


def _repeated(row: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: np.repeat(value[None], count, axis=0) for name, value in row.items()}


def _widened(prompts: PromptBatch, places: int) -> PromptBatch:
    """The prompts with padding up to `places`, so that those of all processes are as long."""
    more = ((0, 0), (0, places - prompts.tokens.shape[1]))
    return prompts._replace(
        tokens=np.pad(prompts.tokens, more, constant_values=Kosmos2Vocabulary.pad_id),
        image_slots=np.pad(prompts.image_slots, more, constant_values=TEXT_SLOT),
    )
