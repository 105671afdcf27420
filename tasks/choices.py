"""seqio tasks over choices among candidates: language, SEED-Bench, memes, sentiment, matrices.

Spec sections 5.6 to 5.8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import ChoiceRecord, MatrixRecord
from kosmos2_jax.data.choice_tasks import Chosen, Scores, add_choice_task, choice_figures
from kosmos2_jax.data.choices import Choice
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Picture, Text
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.evaluation.means import Figure
from kosmos2_jax.evaluation.roc import roc_auc
from kosmos2_jax.grounding import tags

from .captioning import task_name

LANGUAGE = ("storycloze", "hellaswag", "winograd", "winogrande", "piqa", "boolq", "cb", "copa")
COMMON_SENSE = ("relative_size", "memory_color", "color_terms")
LANGUAGE_SHOTS = (1, 4)  # spec section 5.6
RATIONALE_PROMPT = "Introduce this picture in detail:"
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds a task for each split of each set below `folder`; gives their names."""
    accuracy = {"choose": choose, "measure": choice_figures}
    plain = (*LANGUAGE, *COMMON_SENSE, "seed_bench", "rendered_sst2")
    tasks = {benchmark: (benchmark, accuracy) for benchmark in plain}
    rationale = accuracy | {"rationale_prompt": RATIONALE_PROMPT}
    tasks["rendered_sst2_rationale"] = ("rendered_sst2", rationale)
    memes = {"choose": choose, "measure": hateful_figures, "read": hatefulness}
    tasks["hateful_memes"] = ("hateful_memes", memes)
    tasks["raven"] = ("raven", {"choose": choose_matrix, "measure": matrix_figures})
    names = []
    for task, (benchmark, parts) in tasks.items():
        shots = (0, *LANGUAGE_SHOTS) if benchmark in LANGUAGE else (0,)
        for split, count in itertools.product(BENCHMARKS[benchmark].splits, shots):
            names.append(task_name(task, split, count))
            place = (benchmark, split, folder / benchmark)
            add_choice_task(names[-1], *place, settings, shots=count, **parts)
    return tuple(names)


def choose(record: ChoiceRecord, picture: Callable[[str], bytes]) -> tuple[list[Choice], int]:
    """The options, those in a row that share a prompt; after the picture, if there is one."""
    shown = (Picture(picture(record.image)),) if record.image else ()
    choices = []
    for prompt, options in itertools.groupby(record.options, key=lambda option: option.prompt):
        text = Text(tags.require_no_tags(prompt, "The question"), False)
        choices.append(Choice((*shown, text), tuple(option.answer for option in options)))
    return choices, record.answer or 0


def hatefulness(scores: Scores) -> float:
    """How much more probable "yes" is than "no", in nats."""
    yes, no = scores
    return sum(yes) - sum(no)


def hateful_figures(
    targets: Sequence[ChoiceRecord], predictions: Sequence[float | None]
) -> dict[str, float]:
    """ROC-AUC; where there are no scores, the picture is ranked as wrongly as can be.

    Raises:
      DataError: all pictures are hateful, or none.
    """
    labels = [record.answer == 0 for record in targets]
    if len(set(labels)) < 2:
        raise DataError(
            f"ROC-AUC compares hateful memes with others, but all {len(labels)} are alike: ask "
            "more with evaluation.examples."
        )
    worst = [-math.inf if label else math.inf for label in labels]
    found = [w if p is None else p for w, p in zip(worst, predictions, strict=True)]
    return {"roc_auc": roc_auc(labels, found)}


def choose_matrix(
    record: MatrixRecord, picture: Callable[[str], bytes]
) -> tuple[list[Choice], int]:
    """Each candidate behind the pictures that are given: is it correct? "Yes" is scored."""
    count = _NUMBERS[len(record.images) - 1]
    given = [Picture(picture(image)) for image in record.images]
    before = (Text(f"Here are {count} images:", False), *given)
    choices = []
    for candidate in record.candidates:
        after = (Picture(picture(candidate)), Text("Is it correct?", False))
        following = Text("The following image is:", False)
        choices.append(Choice((*before, following, *after), ("Yes",)))
    return choices, record.answer


def matrix_figures(
    targets: Sequence[MatrixRecord], predictions: Sequence[Chosen | None]
) -> dict[str, float]:
    """Share of matrices whose right candidate has the most probable "Yes"."""
    pairs = zip(targets, predictions, strict=True)
    right = [float(c is not None and c.mean == record.answer) for record, c in pairs]
    return {"accuracy": Figure(right)}
