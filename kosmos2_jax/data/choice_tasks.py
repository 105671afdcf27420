"""seqio tasks whose answer is one of several candidates, by their likelihood.

Examples of these tasks carry `candidates` (`kosmos2_jax.data.choices`), and whoever evaluates them
has these scored instead of having something written: an answer is then the JSON of a list of
candidates, each a list of the natural log probabilities of its tokens; empty if there is none.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from kosmos2_jax.data.benchmark_registry import BenchmarkTask
from kosmos2_jax.data.benchmark_tasks import (
    AskedRecords,
    Measure,
    Read,
    ask_records,
    read_picture,
    register_task,
)
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import ChoiceRecord, Record
from kosmos2_jax.data.choices import CANDIDATES, CONSTRAINED, RATIONALE, Choice, encode_choices
from kosmos2_jax.data.demonstrations import Demonstrations
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example
from kosmos2_jax.evaluation.candidates import MEAN, SUM, best_candidate
from kosmos2_jax.evaluation.means import Figure, means_by_group

R = TypeVar("R", bound=Record)

# Makes the choices of a record, given what reads a picture, and says which candidate is right.
Choose = Callable[[R, Callable[[str], bytes]], tuple[Sequence[Choice], int]]
Scores = Sequence[Sequence[float]]


class Chosen(NamedTuple):
    """Which candidate is best by the mean log probability of its tokens, and by their sum."""

    mean: int
    sum: int


def add_choice_task(
    name: str,
    benchmark: str,
    split: str,
    folder: Path,
    settings: TaskSettings,
    *,
    choose: Choose[R],
    measure: Measure[R],
    read: Callable[[Scores], Any] | None = None,
    rationale_prompt: str = "",
    shots: int = 0,
) -> None:
    """Adds a task that scores candidates; see `add_benchmark_task`.

    Args:
      name: of the task.
      benchmark: name in `BENCHMARKS`.
      split: of the benchmark.
      folder: of the download.
      settings: vocabulary and pictures.
      choose: see `Choose`.
      measure: see `Measure`; predictions are None where there are no scores.
      read: what the scores say; `Chosen` by default.
      rationale_prompt: see `kosmos2_jax.data.choices.encode_choices`.
      shots: see `add_benchmark_task`; demonstrations stand before every candidate alike.
    """

    def read_scores(output: str, record: R) -> Any:
        return (read or best_by_both)(json.loads(output)) if output else None

    more = {CANDIDATES: tf.string} | ({RATIONALE: tf.int32} if rationale_prompt else {})
    _add(
        name,
        (benchmark, split, folder),
        settings,
        choose,
        {"read": read_scores, "measure": measure, "more": more},
        shots,
        rationale_prompt=rationale_prompt,
    )


def add_constrained_task(
    name: str,
    benchmark: str,
    split: str,
    folder: Path,
    settings: TaskSettings,
    *,
    choose: Choose[R],
    read: Read[R],
    measure: Measure[R],
) -> None:
    """Adds a task where one of the candidates is written, the most likely as the whole answer.

    As `add_choice_task`, but that what is read is text.
    """
    more = {CANDIDATES: tf.string, CONSTRAINED: tf.bool}
    parts = {"read": read, "measure": measure, "more": more}
    _add(name, (benchmark, split, folder), settings, choose, parts, ends=True)


def _add(
    name: str,
    place: tuple[str, str, Path],
    settings: TaskSettings,
    choose: Choose[R],
    parts: dict[str, Any],
    shots: int = 0,
    **kind: Any,
) -> None:
    benchmark, split, folder = place
    train = BENCHMARKS[benchmark].train

    def demonstration(record: R, picture: Callable[[str], bytes] = read_picture) -> Example:
        choices, answer = choose(record, picture)
        which, number = divmod(answer, len(choices[0].answers))
        return choices[which].example(number)

    def to_draw_from() -> Collection[R]:
        check = functools.partial(demonstration, picture=str.encode)
        return ask_records(benchmark, folder, train, check).records.values()

    shown = Demonstrations(
        to_draw_from, demonstration, shots, settings.seed, among_asked=train == split
    )

    def encode(record: R, picture: Callable[[str], bytes] = read_picture) -> dict[str, Any]:
        choices, answer = choose(record, picture)
        before = shown.before(record.id)
        choices = [Choice((*before, *choice.prompt), choice.answers) for choice in choices]
        limits = settings.encode.num_latents, settings.encode.max_tokens
        return encode_choices(choices, answer, settings.vocabulary, *limits, **kind)

    @functools.cache
    def asked() -> AskedRecords[R]:
        # A path stands for its picture.
        return ask_records(benchmark, folder, split, lambda record: encode(record, str.encode))

    task = BenchmarkTask(benchmark, split, folder, asked, shots=shots)
    register_task(name, task, settings, encode=encode, **parts)


def best_by_both(scores: Scores) -> Chosen:
    """The best candidate with and without length normalisation."""
    return Chosen(best_candidate(scores, MEAN), best_candidate(scores, SUM))


def choice_figures(
    targets: Sequence[ChoiceRecord], predictions: Sequence[Chosen | None]
) -> dict[str, float]:
    """Accuracy by the mean, also of each group, and `accuracy_sum` by the sum."""
    found = {}
    for figure, place in (("accuracy", 0), ("accuracy_sum", 1)):
        right = [
            float(chosen is not None and chosen[place] == record.answer)
            for record, chosen in zip(targets, predictions, strict=True)
        ]
        found[figure] = Figure(right)
        if place == 0:
            groups = means_by_group(right, [(r.group,) if r.group else () for r in targets])
            found |= {f"{figure}/{group}": mean for group, (mean, _) in groups.items()}
    return found
