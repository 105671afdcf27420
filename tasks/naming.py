"""seqio tasks that ask for the name of what is in a picture: ImageNet, birds (spec section 5.8)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kosmos2_jax.data.benchmark_tasks import add_benchmark_task
from kosmos2_jax.data.benchmarks import imagenet
from kosmos2_jax.data.benchmarks.records import DescribedRecord, NameRecord
from kosmos2_jax.data.choice_tasks import add_constrained_task
from kosmos2_jax.data.choices import Choice
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example, Picture, Text
from kosmos2_jax.evaluation.means import Figure, means_by_group
from kosmos2_jax.grounding import tags

from .captioning import plain_text

IMAGENET_PROMPT = "The photo of the"


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds tasks over `folder/imagenet` and `folder/birds`; gives their names."""
    place = ("imagenet", "val", folder / "imagenet", settings)
    parts = {"read": plain_text, "measure": name_figures}
    add_benchmark_task("imagenet_val", *place, build=_build_name, num_beams=2, **parts)
    choose = functools.partial(_choose_name, _class_names(folder / "imagenet"))
    add_constrained_task("imagenet_constrained_val", *place, choose=choose, **parts)
    names = ["imagenet_val", "imagenet_constrained_val"]
    for task, described in (("birds_descriptions", True), ("birds_names", False)):
        names.append(f"{task}_test")
        add_benchmark_task(
            names[-1],
            "birds",
            "test",
            folder / "birds",
            settings,
            build=functools.partial(_build_bird, described),
            read=plain_text,
            measure=bird_figures,
        )
    return tuple(names)


def _class_names(folder: Path) -> Callable[[], tuple[str, ...]]:
    """Reads the first name of each class, when it is first asked for.

    Which of a class's names the paper took is not published.
    """

    @functools.cache
    def names() -> tuple[str, ...]:
        return tuple(
            listed[0] for listed in imagenet.read_names(folder / imagenet.FILES[1]).values()
        )

    return names


def _prompt(picture: bytes) -> tuple[Picture, Text]:
    return Picture(picture), Text(IMAGENET_PROMPT, False)


def _build_name(record: NameRecord, picture: bytes) -> Example:
    name = tags.require_no_tags(record.names[0], "The name")
    return Example((*_prompt(picture), Text(name, True)))


def _choose_name(
    names: Callable[[], tuple[str, ...]], record: NameRecord, picture: Callable[[str], bytes]
) -> tuple[list[Choice], int]:
    answers = names()
    return [Choice(_prompt(picture(record.image)), answers)], answers.index(record.names[0])


def name_figures(targets: Sequence[NameRecord], predictions: Sequence[str]) -> dict[str, float]:
    """Share of answers that are the class's first name to the letter, and any of its names."""
    pairs = list(zip(targets, predictions, strict=True))
    return {
        "accuracy": Figure([float(answer == record.names[0]) for record, answer in pairs]),
        "accuracy_any_name": Figure([float(answer in record.names) for record, answer in pairs]),
    }


def _build_bird(described: bool, record: DescribedRecord, picture: bytes) -> Example:
    """The classes' descriptions, or their names alone, before the question.

    How the names stand in the paper's prompt without descriptions is not published.
    """
    known = " ".join(record.descriptions) if described else f"{', '.join(record.names)}."
    text = f"{known} Question:what is the name of the {record.category} in the picture? Answer:"
    prompt = Text(tags.require_no_tags(text, "The question"), False)
    name = tags.require_no_tags(record.names[record.answer], "The name")
    return Example((Picture(picture), prompt, Text(name, True)))


def bird_figures(
    targets: Sequence[DescribedRecord], predictions: Sequence[str]
) -> dict[str, float]:
    """Share of answers that name the right class and no other, of all and by pair of classes."""
    right = [
        float(_named(record, answer) == {record.answer})
        for record, answer in zip(targets, predictions, strict=True)
    ]
    groups = means_by_group(right, [(" / ".join(record.names),) for record in targets])
    by_pair = {f"accuracy/{group}": mean for group, (mean, _) in groups.items()}
    return {"accuracy": Figure(right)} | by_pair


def _named(record: DescribedRecord, answer: str) -> set[int]:
    words = _words(answer)
    return {
        number for number, name in enumerate(record.names) if f" {_words(name)} " in f" {words} "
    }


def _words(text: str) -> str:
    """In lower case, without hyphens and other signs: "Three-toed woodpecker." is one."""
    return " ".join(re.findall(r"\w+", text.lower()))
