"""Evaluation: seqio tasks, answered by the model and scored by the tasks' own metrics."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf
from etils import epath
from jax.sharding import NamedSharding

from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS
from kosmos2_jax.data.choices import (
    CANDIDATES,
    CONSTRAINED,
    FEATURES,
    RATIONALE,
    read_rows,
)
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.pictures import BROKEN
from kosmos2_jax.evaluation.predictions import Prediction, answers_of
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model, prompts_of
from kosmos2_jax.inference.prompt_batch import TEXT_SLOT, PromptBatch
from kosmos2_jax.inference.sampling import FAIRSEQ, SamplingConfig
from kosmos2_jax.training.candidate_scoring import Asked, CandidateScoring, most_likely
from kosmos2_jax.training.processes import (
    data_shard,
    gather,
    global_batch,
    host_values,
    is_first,
)
from kosmos2_jax.training.run_config import EvaluationConfig
from kosmos2_jax.training.saved_predictions import saved_predictions
from kosmos2_jax.training.task_scoring import TaskResult, TaskScoring

# What stands for the number of an example in a row that only fills the batch up.
_NO_EXAMPLE = -1


class _Rows(NamedTuple):
    """A batch of examples, or what fills it up.

    Attributes:
      numbers: of the examples, -1 where there is none; int32 [B].
      broken: whether a picture could not be read; bool [B].
      pictures: of a row at most.
      features: of the feature converter.
    """

    numbers: np.ndarray
    broken: np.ndarray
    pictures: int
    features: Mapping[str, np.ndarray]


class TaskEvaluation:
    """Registered seqio tasks, answered by the model and scored by `seqio.Evaluator`.

    Of several processes each prepares its share of the examples, all answer them together, and the
    first saves and scores. The first examples of a task, where no more are asked, are kept for the
    next time.
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
        self._image_size = model.config.vision.image_size
        self._share = functools.cache(self._read_share)
        self._scoring = functools.cache(self._open_scoring)
        self._candidates = CandidateScoring(model, rows, self._batch_size, self._shard)

    def __call__(
        self, params: Any, limit: int = 0, folder: epath.Path | None = None
    ) -> dict[str, TaskResult]:
        """Result by task; see `evaluate`."""
        return {name: self.evaluate(params, name, limit, folder) for name in self._config.tasks}

    def evaluate(
        self, params: Any, name: str, limit: int = 0, folder: epath.Path | None = None
    ) -> TaskResult:
        """Result of one task.

        Args:
          params: unboxed parameters.
          name: of the task.
          limit: examples at most, the first ones; 0 for all.
          folder: gets `TASK.jsonl`, the predictions; what is in it is not asked again. None to
            save nothing.

        Raises:
          Kosmos2Error: the task cannot be asked or scored, or the saved predictions are not its.
        """
        scoring = self._scoring(name, limit) if is_first() else None
        ids = scoring.ids if scoring else []
        with saved_predictions(folder, name) as saved:
            done = [
                n for n, batch in enumerate(self._in_batches(ids)) if batch <= saved.found.keys()
            ]
            for predictions in self._answer(params, name, limit, set(gather(done)[0])):
                saved.add(dataclasses.replace(p, id=ids[n]) for n, p in predictions.items() if ids)
        result = None
        if scoring:
            own = set(ids)  # there may be more in the folder than are asked now
            predictions = [p for p in saved.found.values() if p.id in own]
            result = scoring.score(answers_of(ids, predictions, name))
        figures = gather(result.metrics if result else None)[0]
        return result or TaskResult(figures)

    def _in_batches(self, ids: Sequence[str]) -> list[set[str]]:
        size = self._batch_size
        return [set(ids[start : start + size]) for start in range(0, len(ids), size)]

    def _answer(
        self, params: Any, name: str, limit: int, done: Set[int]
    ) -> Iterator[dict[int, Prediction]]:
        """Batch by batch what is answered, by number of the example; without those `done`.

        Batches are the same ones whatever is done, so that an evaluation that goes on gives what
        one that was never stopped does.
        """
        task = BENCHMARK_TASKS.get(name)
        sampling = self._model.sampling
        if task is not None:
            # As the official code normalises the scores of beams (spec section 4.8).
            sampling = dataclasses.replace(
                sampling, num_beams=task.num_beams, beam_normalization=FAIRSEQ
            )
        batches = self._batches(self._share(name, limit), done)
        while True:
            rows = next(batches)
            prompts = prompts_of(rows.features)
            own = [bool((rows.numbers >= 0).any()), prompts.tokens.shape[1], rows.pictures]
            some, places, pictures = (max(values) for values in zip(*gather(own), strict=True))
            if not some:
                return
            prompts = _widened(prompts, places)
            prompts = prompts._replace(images=prompts.images[:, :pictures] if pictures else None)
            answer = self._choose if CANDIDATES in rows.features else self._write
            yield answer(params, rows, prompts, sampling)

    def _write(
        self, params: Any, rows: _Rows, prompts: PromptBatch, sampling: SamplingConfig
    ) -> dict[int, Prediction]:
        """What the model writes after each prompt, of all processes, by number of the example."""
        return {
            number: Prediction("", error=BROKEN)
            if is_broken
            else Prediction("", self._vocabulary.decode(tokens))
            for number, is_broken, tokens in self._written(params, rows, prompts, sampling)
        }

    def _written(
        self, params: Any, rows: _Rows, prompts: PromptBatch, sampling: SamplingConfig
    ) -> list[tuple[int, bool, np.ndarray]]:
        """Number of the example, whether a picture is broken, and tokens; of all processes."""
        batch = {"numbers": rows.numbers, "broken": rows.broken, **prompts._asdict()}
        batch = global_batch(batch, self._rows)
        numbers, broken = host_values(batch.pop("numbers")), host_values(batch.pop("broken"))
        written = self._model.generate(params, PromptBatch(**batch), sampling)
        tokens = host_values(written.tokens)
        found = zip(numbers.tolist(), broken.tolist(), tokens, strict=True)
        return [each for each in found if each[0] != _NO_EXAMPLE]

    def _choose(
        self, params: Any, rows: _Rows, prompts: PromptBatch, sampling: SamplingConfig
    ) -> dict[int, Prediction]:
        """Scores of each example's candidates, or the likeliest one, as `_write`."""
        features, rationales, places = rows.features, {}, np.zeros(len(rows.numbers), np.int32)
        if RATIONALE in features:
            places = features[RATIONALE]
            written = self._written(params, rows, prompts, sampling)
            rationales = {number: _until_end(tokens) for number, _, tokens in written}
        numbers = rows.numbers.tolist()
        own = np.flatnonzero((rows.numbers != _NO_EXAMPLE) & ~rows.broken).tolist()
        asked = [
            Asked(
                read_rows(features[CANDIDATES][n]),
                features["images"][n],
                rationales.get(numbers[n], ()),
                int(places[n]),
            )
            for n in own
        ]
        broken = np.flatnonzero((rows.numbers != _NO_EXAMPLE) & rows.broken).tolist()
        found: dict[int, dict[str, Any]] = {numbers[n]: {"error": BROKEN} for n in broken}
        for n, example, scores in zip(own, asked, self._candidates(params, asked), strict=True):
            if CONSTRAINED in features:
                output = self._vocabulary.decode(most_likely(example.rows, scores))
                found[numbers[n]] = {"output": output}
            else:
                found[numbers[n]] = {"scores": scores}
        parts = gather(found)
        return {int(n): Prediction("", **told) for part in parts for n, told in part.items()}

    def _read_share(self, name: str, limit: int) -> tf.data.Dataset:
        """The examples that this process prepares, each with its number."""
        examples = seqio.get_mixture_or_task(name).get_dataset(
            self._lengths, split=self._split, shuffle=False, num_epochs=1
        )
        share = self._batch_size // self._shard.count
        first = self._shard.number * share

        def mine(number: tf.Tensor, example: Any) -> tf.Tensor:
            place = number % self._batch_size
            return (place >= first) & (place < first + share)

        examples = examples.take(limit or -1).enumerate().filter(mine)
        # Encoded pictures are kept; they are decoded each time.
        return examples.cache() if limit else examples

    def _batches(self, share: tf.data.Dataset, done: Set[int]) -> Iterator[_Rows]:
        """Rows of one shape and so one compilation; without end.

        Others may have examples left when this process has none.
        """
        if done:
            numbers = tf.constant(sorted(done), tf.int64)
            share = share.filter(
                lambda number, _: tf.reduce_all(numbers != number // self._batch_size)
            )
        size = self._batch_size // self._shard.count
        examples = share.map(_second)
        spec = examples.element_spec
        keep = {name: spec[name].dtype for name in FEATURES if name in spec}
        threads = os.cpu_count() or 1
        convert = PackingFeatureConverter(self._image_size, threads=threads, keep=keep)
        rows = convert(examples, self._lengths).batch(size).prefetch(1)
        last = {
            name: np.zeros((1, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
            for name, spec in rows.element_spec.items()
        }
        places = (place for place in itertools.count() if place not in done)
        for place, batch in zip(places, rows.as_numpy_iterator(), strict=False):
            count = len(batch["tokens"])
            last = {name: values[-1:] for name, values in batch.items()}
            filler = _repeated(last, size - count)
            features = {name: np.concatenate([batch[name], filler[name]]) for name in batch}
            numbers = np.full(size, _NO_EXAMPLE, np.int32)
            first = place * self._batch_size + self._shard.number * size
            numbers[:count] = np.arange(first, first + count)
            yield self._as_rows(numbers, features)
        while True:
            yield self._as_rows(np.full(size, _NO_EXAMPLE, np.int32), _repeated(last, size))

    def _as_rows(self, numbers: np.ndarray, features: Mapping[str, np.ndarray]) -> _Rows:
        slots = self._model.config.resampler.num_latents
        pictures = int(features["image_slots"].max() + slots) // slots
        # An example of a broken picture has no weight left, see `decode_row`.
        return _Rows(numbers, ~features["loss_weights"].any(axis=1), pictures, features)

    def _open_scoring(self, name: str, limit: int) -> TaskScoring:
        return TaskScoring(
            name, self._vocabulary, self._lengths, self._image_size, self._split, limit
        )


def _second(_: Any, example: Any) -> Any:
    return example


def _repeated(row: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: np.repeat(value, count, axis=0) for name, value in row.items()}


def _until_end(tokens: np.ndarray) -> list[int]:
    """What was written, without what ended it and the padding behind."""
    ends = (Kosmos2Vocabulary.eos_id, Kosmos2Vocabulary.pad_id)
    return list(itertools.takewhile(lambda token: token not in ends, tokens.tolist()))


def _widened(prompts: PromptBatch, places: int) -> PromptBatch:
    """The prompts with padding up to `places`, so that those of all processes are as long."""
    more = ((0, 0), (0, places - prompts.tokens.shape[1]))
    return prompts._replace(
        tokens=np.pad(prompts.tokens, more, constant_values=Kosmos2Vocabulary.pad_id),
        image_slots=np.pad(prompts.image_slots, more, constant_values=TEXT_SLOT),
    )
