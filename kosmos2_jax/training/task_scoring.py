"""Scoring of a task's answers by its own metrics, through `seqio.Evaluator`; no model is needed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import seqio
from absl import logging

from kosmos2_jax.data.choices import CANDIDATES
from kosmos2_jax.data.features import EXAMPLE_ID, QUESTION
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.pictures import decode_picture
from kosmos2_jax.errors import ConfigError, ImageError, Kosmos2Error
from kosmos2_jax.evaluation.means import Figure
from kosmos2_jax.evaluation.predictions import Answers
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# Examples that are kept to be shown: the first ones, and the best and worst of some more.
_FIRST, _EXTREMES, _SEARCHED = 24, 4, 200


@dataclasses.dataclass(frozen=True)
class Sample:
    """An example with its pictures, to be shown.

    Attributes:
      number: place in the task.
      prompt: markup before the answer.
      pictures: in reading order, uint8 [S, S, 3]; the last is what is asked about.
    """

    number: int
    prompt: str
    pictures: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Figures of one task and what they were made of, in the order of the examples.

    Of several processes the first has all of it, the others the figures alone.

    Attributes:
      metrics: by name; those that know how sure they are, are `Figure`s.
      ids: of the examples.
      outputs: answers, as of `kosmos2_jax.evaluation.predictions`.
      problems: why an answer can only be wrong, by id.
      predictions: the task's postprocessed outputs.
      targets: the task's postprocessed truth.
      samples: some of the first examples.
    """

    metrics: dict[str, float]
    ids: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    predictions: list[Any] = dataclasses.field(default_factory=list)
    targets: list[Any] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)


class TaskScoring:
    """A task's examples, without their pictures, and its metrics.

    Attributes:
      ids: of the examples, in order: their feature "id", or else their place.
      questions: digests of what is asked, by id; of examples that have the feature "question".
    """

    def __init__(
        self,
        name: str,
        vocabulary: Kosmos2Vocabulary,
        lengths: Mapping[str, int],
        image_size: int,
        split: str = "test",
        limit: int = 0,
    ) -> None:
        """Reads the examples.

        Args:
          name: of a registered task.
          vocabulary: of the model.
          lengths: `kosmos2_jax.data.features.feature_lengths`.
          image_size: pixels a side of what is shown.
          split: which split to read.
          limit: examples at most, the first ones; 0 for all.

        Raises:
          ConfigError: the task has no metrics or no such split, or an id is there twice.
        """
        self._task = seqio.TaskRegistry.get(name)
        self._vocabulary, self._image_size = vocabulary, image_size
        self._lengths, self._split = dict(lengths), split
        if not self._task.metric_objs or split not in self._task.splits:
            raise ConfigError(
                f"task {name} has no metrics or no split {split!r}; leave it out of "
                "evaluation.tasks"
            )
        with _quietly():
            self._evaluator = seqio.Evaluator(
                name,
                feature_converter=PackingFeatureConverter(image_size),
                eval_split=split,
                # Pictures of all examples together may be more than there is memory.
                sequence_length=self._lengths | {"images": 0},
                num_examples=limit or None,
            )
        unneeded = {*self._task.output_features, CANDIDATES}
        self._examples = [
            {key: value for key, value in example.items() if key not in unneeded}
            for example in self._evaluator.cached_task_datasets[name].as_numpy_iterator()
        ]
        self.ids = [
            example[EXAMPLE_ID].decode() if EXAMPLE_ID in example else str(number)
            for number, example in enumerate(self._examples)
        ]
        pairs = zip(self.ids, self._examples, strict=True)
        self.questions = {i: e[QUESTION].decode() for i, e in pairs if QUESTION in e}
        if len(set(self.ids)) < len(self.ids):
            twice = next(i for n, i in enumerate(self.ids) if i in self.ids[:n])
            raise ConfigError(f"task {name} has two examples of the id {twice!r}; mend its data")

    def score(self, answers: Answers) -> TaskResult:
        """The figures of one answer for each example.

        Raises:
          Kosmos2Error: of a metric.
        """
        name, texts = self._task.name, answers.texts
        try:
            metrics, _ = self._evaluator.evaluate(
                compute_metrics=True, predict_fn=lambda _: list(enumerate(texts))
            )
            found = metrics.result()[name]
        except ValueError as error:  # seqio's own, around whatever it was
            if isinstance(error.__cause__, Kosmos2Error):
                raise error.__cause__ from None
            raise
        postprocess = self._task.postprocess_fn
        pairs = list(zip(texts, self._examples, strict=True))
        result = TaskResult(
            metrics=dict(found),
            ids=self.ids,
            outputs=texts,
            problems=answers.problems,
            predictions=[postprocess(t, example=e, is_target=False) for t, e in pairs],
            targets=[postprocess("", example=e, is_target=True) for _, e in pairs],
        )
        result.samples.extend(self._samples(shown_numbers(result)))
        return result

    def _samples(self, numbers: Iterable[int]) -> list[Sample]:
        """The examples at these places, with pictures; reads all before the last of them."""
        wanted = sorted(set(numbers))
        if not wanted:
            return []
        dataset = self._task.get_dataset(
            self._lengths, split=self._split, shuffle=False, num_epochs=1
        )
        examples = dataset.take(wanted[-1] + 1).enumerate().as_numpy_iterator()
        chosen = set(wanted)
        return [self._sample(int(n), example) for n, example in examples if int(n) in chosen]

    def _sample(self, number: int, example: Mapping[str, np.ndarray]) -> Sample:
        first = int(np.argmax(example["loss_weights"] > 0))
        # The slots of a picture have ids of words (trap T-14).
        text = example["targets"][:first][example["image_slots"][:first] < 0]
        prompt = self._vocabulary.decode(text)
        pictures = [self._picture(encoded) for encoded in example["images"]]
        return Sample(number, prompt, tuple(pictures))

    def _picture(self, encoded: bytes) -> np.ndarray:
        try:
            return decode_picture(encoded, self._image_size)
        except ImageError:  # counted where the model was asked
            return np.zeros((self._image_size, self._image_size, 3), np.uint8)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without seqio's warnings of what is meant: no logger of its own, and lengths that fit all."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def main_scores(result: TaskResult) -> np.ndarray | None:
    """The scores [examples] that the task's first figure is the mean of, if it is one of all."""
    for figure in result.metrics.values():
        if isinstance(figure, Figure) and figure.scores.shape == (len(result.ids),):
            return figure.scores.astype(np.float64)
    return None


def shown_numbers(result: TaskResult) -> set[int]:
    """Places of the first examples, and of the best and worst of some more of them."""
    numbers = range(min(_SEARCHED, len(result.ids)))
    scores = main_scores(result)
    chosen = set(numbers[:_FIRST])
    if scores is not None:
        order = sorted(numbers, key=lambda number: scores[number])
        chosen |= {*order[:_EXTREMES], *order[::-1][:_EXTREMES]}
    return chosen
