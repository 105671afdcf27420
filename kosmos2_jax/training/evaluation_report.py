"""The report of an evaluation: what stands in it, and its files."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS, BenchmarkTask
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import (
    CaptionRecord,
    ChoiceRecord,
    DescribedRecord,
    MatrixRecord,
    NameRecord,
    PhraseRecord,
    QuestionRecord,
    ReferringRecord,
)
from kosmos2_jax.data.choice_tasks import Chosen
from kosmos2_jax.evaluation.means import Figure, Interval
from kosmos2_jax.evaluation.paper_values import paper_value
from kosmos2_jax.evaluation.results import (
    FigureRow,
    Results,
    ShownExample,
    TaskReport,
    markdown,
)
from kosmos2_jax.evaluation.results_page import page_html
from kosmos2_jax.evaluation.sheet import drawn_picture
from kosmos2_jax.training.sheets import sheet_item
from kosmos2_jax.training.task_scoring import Sample, TaskResult, main_scores

REPORT_MD, REPORT_HTML = "report.md", "report.html"
_HUNDREDTHS = 100.0
_SHOWN = 4  # best and worst examples
_GRADED = ("cider",)  # figures whose scores of single examples go beyond 1


def write_report(results: Results, folder: epath.Path) -> None:
    """Writes `report.md` and `report.html`."""
    (folder / REPORT_MD).write_text(markdown(results), encoding="utf-8")
    (folder / REPORT_HTML).write_text(page_html(results), encoding="utf-8")


def task_report(name: str, result: TaskResult) -> TaskReport:
    """What the report says of a task."""
    task = BENCHMARK_TASKS.get(name)
    lost: Mapping[str, str] = {}
    if task is not None and len(result.ids) == len(task.asked().records):  # or only the first ones
        lost = {problem.id: problem.reason for problem in task.asked().problems}
    scores = main_scores(result)
    best, worst = _best_and_worst(result, scores)
    return TaskReport(
        name=name,
        summary="" if task is None else _summary(task),
        examples=len(result.ids),
        lost=lost,
        problems=result.problems,
        rows=_rows(name, result.metrics, is_benchmark=task is not None),
        best=[_shown(result, sample, scores) for sample in best],
        worst=[_shown(result, sample, scores) for sample in worst],
    )


def _summary(task: BenchmarkTask) -> str:
    examples = "one example" if task.shots == 1 else f"{task.shots} examples"
    shown = f", after {examples} with answers" if task.shots else ""
    return f"{BENCHMARKS[task.benchmark].summary}, {task.split}{shown}"


def _rows(name: str, metrics: Mapping[str, float], is_benchmark: bool) -> list[FigureRow]:
    """In the papers' units; how many are lost is told elsewhere."""
    rows = []
    for key, value in metrics.items():
        figure = key.removeprefix(f"{name}_")
        if is_benchmark and figure == "lost":
            continue
        scale = _HUNDREDTHS if is_benchmark or isinstance(value, Figure) else 1.0
        interval = None
        if isinstance(value, Figure):
            interval = Interval(*(scale * end for end in value.interval()))
        rows.append(FigureRow(figure, scale * float(value), interval, paper_value(name, figure)))
    return rows


def _best_and_worst(
    result: TaskResult, scores: np.ndarray | None
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Of those samples that there are; the first ones where single examples have no score."""
    if scores is None:
        return result.samples[:_SHOWN], ()
    order = sorted(result.samples, key=lambda sample: -scores[sample.number])
    half = min(_SHOWN, len(order) // 2 + len(order) % 2)
    return order[:half], order[half:][::-1][:_SHOWN]


def _shown(result: TaskResult, sample: Sample, scores: np.ndarray | None) -> ShownExample:
    number = sample.number
    target, found = result.targets[number], result.predictions[number]
    return ShownExample(
        id=result.ids[number],
        prompt=sample.prompt,
        answer=_answer(target, found, result.outputs[number]),
        truth=_truth(target),
        score=None if scores is None else float(scores[number]),
        graded=next(iter(result.metrics)).endswith(_GRADED),
        picture=drawn_picture(sheet_item(result, sample)) if sample.pictures else None,
        pictures=len(sample.pictures),
    )


def _answer(target: Any, found: Any, output: str) -> str:
    if isinstance(found, Chosen):
        if isinstance(target, ChoiceRecord):
            return target.options[found.mean].answer
        return f"candidate {found.mean + 1}"
    return output


def _truth(target: Any) -> str:
    match target:
        case PhraseRecord():
            boxes = "the dashed box" if len(target.boxes) == 1 else "any of the dashed boxes"
            return f"{boxes}: {target.phrase}"
        case ReferringRecord():
            return f"the dashed box: {' / '.join(target.expressions)}"
        case CaptionRecord():
            return " / ".join(target.captions)
        case QuestionRecord():
            counts = collections.Counter(target.answers).most_common()
            return ", ".join(f"{answer} ({count})" for answer, count in counts) or "secret"
        case ChoiceRecord():
            return "secret" if target.answer is None else target.options[target.answer].answer
        case NameRecord():
            return ", ".join(target.names)
        case DescribedRecord():
            return target.names[target.answer]
        case MatrixRecord():
            return f"candidate {target.answer + 1}"
        case {"phrase": phrase, "boxes": _}:
            return f"the dashed box: {phrase}"
        case list():
            return " / ".join(map(str, target))
    return str(target)
