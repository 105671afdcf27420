"""seqio tasks over questions with free answers: VQAv2, VizWiz, WebSRC (spec 5.5 and 5.8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.data.benchmark_tasks import add_benchmark_task
from kosmos2_jax.data.benchmarks.records import QuestionRecord
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example, Picture, Text, question_example
from kosmos2_jax.evaluation import extraction, vqa
from kosmos2_jax.evaluation.means import Figure, means_by_group
from kosmos2_jax.grounding import tags

from .captioning import plain_text


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds a task for each split whose answers are known below `folder`; gives their names."""
    accuracy = {"build": _build, "measure": vqa_accuracy}
    websrc = {"build": _build_websrc, "measure": match}
    tasks = (("vqav2", "val2014", accuracy), ("vizwiz", "val", accuracy), ("websrc", "dev", websrc))
    for benchmark, split, parts in tasks:
        name, place = f"{benchmark}_{split}", folder / benchmark
        add_benchmark_task(name, benchmark, split, place, settings, read=plain_text, **parts)
    return tuple(f"{benchmark}_{split}" for benchmark, split, _ in tasks)


def _build(record: QuestionRecord, picture: bytes) -> Example:
    """`Question: {question} Answer:`"""
    return question_example([picture], [(record.question, record.answers[0])])


def _build_websrc(record: QuestionRecord, picture: bytes) -> Example:
    prompt = tags.require_no_tags(record.question, "The question")
    answer = tags.require_no_tags(record.answers[0], "The answer")
    return Example((Picture(picture), Text(prompt, False), Text(answer, True)))


def vqa_accuracy(targets: Sequence[QuestionRecord], predictions: Sequence[str]) -> dict[str, float]:
    """VQA accuracy, of all questions and by kind of answer."""
    scores = [
        vqa.answer_score(record.answers, answer)
        for record, answer in zip(targets, predictions, strict=True)
    ]
    groups = means_by_group(scores, [(record.group,) for record in targets])
    by_kind = {f"accuracy/{group}": mean for group, (mean, _) in groups.items()}
    return {"accuracy": Figure(scores)} | by_kind


def match(targets: Sequence[QuestionRecord], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words."""
    pairs = list(zip(targets, predictions, strict=True))
    return {
        "exact_match": Figure([extraction.exact_match(r.answers, p) for r, p in pairs]),
        "f1": Figure([extraction.f1(r.answers, p) for r, p in pairs]),
    }
