"""Evaluation: seqio tasks, answered by the model and scored by the tasks' own metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

import numpy as np
import seqio
import tensorflow as tf
from etils import epath
from jax.sharding import NamedSharding
from tqdm import tqdm

from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS
from kosmos2_jax.data.choices import CANDIDATES, CONSTRAINED, RATIONALE, read_rows
from kosmos2_jax.data.pictures import BROKEN
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.data.streams import python_error
from kosmos2_jax.errors import ConfigError, PredictionError
from kosmos2_jax.evaluation.predictions import Prediction, answers_of, check_questions
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model, prompts_of
from kosmos2_jax.inference.prompt_batch import TEXT_SLOT, PromptBatch
from kosmos2_jax.inference.sampling import FAIRSEQ, SamplingConfig
from kosmos2_jax.training.candidate_scoring import Asked, CandidateScoring, most_likely
from kosmos2_jax.training.processes import (
    agreed,
    data_shard,
    gather,
    global_batch,
    host_values,
    is_first,
)
from kosmos2_jax.training.run_config import EvaluationConfig
from kosmos2_jax.training.saved_predictions import saved_predictions
from kosmos2_jax.training.task_rows import NO_EXAMPLE, TaskReader, TaskRows
from kosmos2_jax.training.task_scoring import TaskResult, TaskScoring

_T = TypeVar("_T")


class TaskEvaluation:
    """Registered seqio tasks, answered by the model and scored by `seqio.Evaluator`.

    Of several processes each prepares its share of the examples, all answer them together, and the
    first saves and scores.
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
          ConfigError: there is no such task; see also
            `kosmos2_jax.training.processes.data_shard`.
        """
        for name in config.tasks:
            if name not in seqio.TaskRegistry.names():
                known = [task for task in seqio.TaskRegistry.names() if _measures(task)]
                raise ConfigError(
                    f"evaluation.tasks names {name!r}, which these data do not have; "
                    + (f"they have {', '.join(sorted(known))}" if known else "they have none")
                )
        self._model, self._vocabulary, self._config = model, vocabulary, config
        self._lengths, self._rows, self._split = dict(lengths), rows, split
        devices = rows.mesh.size // rows.shard_shape((rows.mesh.size,))[0]
        self._batch_size = -(-config.batch_size // devices) * devices
        shard = data_shard(rows, self._batch_size)
        self._image_size = model.config.vision.image_size
        self._read = TaskReader(
            self._lengths,
            split,
            shard,
            self._batch_size,
            self._image_size,
            model.config.resampler.num_latents,
        )
        self._candidates = CandidateScoring(model, rows, self._batch_size, shard)
        self._scoring = functools.cache(self._open_scoring)

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
          DataError: of all processes, if one of them cannot read the task.
          PredictionError: the saved predictions are of another task, or answer other questions.
          Kosmos2Error: the task cannot be scored.
        """
        scoring = read_together(lambda: self._scoring(name, limit) if is_first() else None)
        ids, questions = (scoring.ids, scoring.questions) if scoring else ([], {})
        with saved_predictions(folder, name) as saved:
            known = saved.found.values()
            agreed(lambda: check_questions(questions, known, name), PredictionError)
            done = [
                n for n, batch in enumerate(self._in_batches(ids)) if batch <= saved.found.keys()
            ]
            bar = self._bar(name, ids, done)
            for predictions in self._answer(params, name, limit, set(gather(done)[0])):
                saved.add(
                    dataclasses.replace(p, id=ids[n], question=questions.get(ids[n]))
                    for n, p in predictions.items()
                    if ids
                )
                bar.update(len(predictions))
            bar.close()
        own = set(ids)  # there may be more in the folder than are asked now
        predictions = [p for p in saved.found.values() if p.id in own]
        result = read_together(
            lambda: scoring.score(answers_of(ids, predictions, name)) if scoring else None
        )
        figures = gather(result.metrics if result else None)[0]
        return result or TaskResult(figures)

    def _bar(self, name: str, ids: Sequence[str], done: Sequence[int]) -> tqdm:
        """On a terminal, how far it is."""
        before = min(len(done) * self._batch_size, len(ids))
        hidden = None if is_first() else True
        return tqdm(total=len(ids), initial=before, desc=name, leave=False, disable=hidden)

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
        sampling = self._sampling(name)
        batches = self._read(name, limit, done)
        while True:
            rows = read_together(lambda: next(batches))
            prompts = prompts_of(rows.features)
            own = [bool((rows.numbers >= 0).any()), prompts.tokens.shape[1], rows.pictures]
            some, places, pictures = (max(values) for values in zip(*gather(own), strict=True))
            if not some:
                return
            prompts = _widened(prompts, places)
            prompts = prompts._replace(images=prompts.images[:, :pictures] if pictures else None)
            answer = self._choose if CANDIDATES in rows.features else self._write
            yield answer(params, rows, prompts, sampling)

    def _sampling(self, name: str) -> SamplingConfig:
        task = BENCHMARK_TASKS.get(name)
        if task is None:
            return self._model.sampling
        # As the official code normalises the scores of beams (spec section 4.8).
        return dataclasses.replace(
            self._model.sampling, num_beams=task.num_beams, beam_normalization=FAIRSEQ
        )

    def _write(
        self, params: Any, rows: TaskRows, prompts: PromptBatch, sampling: SamplingConfig
    ) -> dict[int, Prediction]:
        """What the model writes after each prompt, of all processes, by number of the example."""
        return {
            number: Prediction("", error=BROKEN)
            if is_broken
            else Prediction("", self._vocabulary.decode(tokens))
            for number, is_broken, tokens in self._written(params, rows, prompts, sampling)
        }

    def _written(
        self, params: Any, rows: TaskRows, prompts: PromptBatch, sampling: SamplingConfig
    ) -> list[tuple[int, bool, np.ndarray]]:
        """Number of the example, whether a picture is broken, and tokens; of all processes."""
        batch = {"numbers": rows.numbers, "broken": rows.broken, **prompts._asdict()}
        batch = global_batch(batch, self._rows)
        numbers, broken = host_values(batch.pop("numbers")), host_values(batch.pop("broken"))
        tokens = host_values(self._model.generate(params, PromptBatch(**batch), sampling).tokens)
        found = zip(numbers.tolist(), broken.tolist(), tokens, strict=True)
        return [each for each in found if each[0] != NO_EXAMPLE]

    def _choose(
        self, params: Any, rows: TaskRows, prompts: PromptBatch, sampling: SamplingConfig
    ) -> dict[int, Prediction]:
        """Scores of each example's candidates, or the likeliest one, as `_write`."""
        features, rationales, places = rows.features, {}, np.zeros(len(rows.numbers), np.int32)
        if RATIONALE in features:
            places = features[RATIONALE]
            written = self._written(params, rows, prompts, sampling)
            rationales = {number: _until_end(tokens) for number, _, tokens in written}
        numbers = rows.numbers.tolist()
        own = np.flatnonzero((rows.numbers != NO_EXAMPLE) & ~rows.broken).tolist()
        asked = [
            Asked(
                read_rows(features[CANDIDATES][n]),
                features["images"][n],
                rationales.get(numbers[n], ()),
                int(places[n]),
            )
            for n in own
        ]
        broken = np.flatnonzero((rows.numbers != NO_EXAMPLE) & rows.broken).tolist()
        found: dict[int, dict[str, Any]] = {numbers[n]: {"error": BROKEN} for n in broken}
        for n, example, scores in zip(own, asked, self._candidates(params, asked), strict=True):
            if CONSTRAINED in features:
                output = self._vocabulary.decode(most_likely(example.rows, scores))
                found[numbers[n]] = {"output": output}
            else:
                found[numbers[n]] = {"scores": scores}
        parts = gather(found)
        return {int(n): Prediction("", **told) for part in parts for n, told in part.items()}

    def _open_scoring(self, name: str, limit: int) -> TaskScoring:
        return TaskScoring(
            name, self._vocabulary, self._lengths, self._image_size, self._split, limit
        )


def read_together(work: Callable[[], _T]) -> _T:
    """What `work` reads, unless one of the processes cannot. All of them call it.

    Raises:
      DataError: what is read is not usable, for one process or more.
    """

    def read() -> _T:
        with _errors_of_python():
            return work()

    return agreed(read, DataError)


@contextlib.contextmanager
def _errors_of_python() -> Iterator[None]:
    """Raises what a user can mend as it was before TensorFlow told of it."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
        if found := python_error(error):
            raise found from None
        raise


def _measures(task: str) -> bool:
    return bool(seqio.TaskRegistry.get(task).metric_fns)


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
