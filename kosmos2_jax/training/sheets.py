"""Pictures of what a model answered, one sheet a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath
from PIL import Image

from kosmos2_jax.data.benchmark_tasks import fractions
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
from kosmos2_jax.evaluation.sheet import SheetItem, picture_sheet
from kosmos2_jax.evaluation.vqa import normalize_answer
from kosmos2_jax.training.processes import is_first
from kosmos2_jax.training.task_scoring import Sample, TaskResult

_COLUMNS = 6
_PICTURES = 24


def write_sheets(results: Mapping[str, TaskResult], folder: epath.Path) -> None:
    """Writes `TASK.png` for each task, with its first examples."""
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for task, result in results.items():
        if items := sheet_items(result):
            with (folder / f"{task}.png").open("wb") as file:
                picture_sheet(items, _COLUMNS, file)


def sheet_items(result: TaskResult, count: int = _PICTURES) -> list[SheetItem]:
    """The first examples of a task.

    Where the truth is {"phrase": ..., "boxes": ...}, predictions are boxes and both are drawn.
    Where it is a list, it holds the answers that are right. Records of benchmarks are shown as
    what they ask and what is true. Anything else is shown as it is.
    """
    return [sheet_item(result, sample) for sample in result.samples[:count] if sample.pictures]


def sheet_item(result: TaskResult, sample: Sample) -> SheetItem:
    """An example of a task, which has a picture, with what was found; see `sheet_items`."""
    truth, found = result.targets[sample.number], result.predictions[sample.number]
    return _item(Image.fromarray(sample.pictures[-1]), truth, found)


def _item(image: Image.Image, truth: Any, found: Any) -> SheetItem:
    if isinstance(truth, Mapping) and "boxes" in truth:
        return SheetItem(image, str(truth.get("phrase", "")), tuple(found), tuple(truth["boxes"]))
    if isinstance(truth, list) and truth:
        return SheetItem(image, f"{truth[0]} / {found}", correct=found in truth)
    match truth:
        case PhraseRecord():
            true = tuple(fractions(box, truth.size) for box in truth.boxes)
            predicted = tuple(fractions(box, truth.size) for box in found)
            return SheetItem(image, truth.phrase, predicted, true)
        case ReferringRecord() if not isinstance(found, str):
            predicted = () if found is None else (fractions(found, truth.size),)
            true = (fractions(truth.box, truth.size),)
            return SheetItem(image, truth.expressions[0], predicted, true)
        case ReferringRecord():
            return SheetItem(image, f"{truth.expressions[0]} / {found}")
        case CaptionRecord():
            return SheetItem(image, f"{truth.captions[0]} / {found}")
        case QuestionRecord():
            right = normalize_answer(found) in map(normalize_answer, truth.answers)
            return SheetItem(image, f"{truth.question} {found}", correct=right)
        case ChoiceRecord(options=options) if isinstance(found, Chosen):
            option = options[found.mean]
            said = f"{option.prompt} {option.answer}"
            return SheetItem(image, said, correct=found.mean == truth.answer)
        case ChoiceRecord(options=options):
            return SheetItem(image, f"{options[0].prompt} {options[0].answer}: {found}")
        case MatrixRecord():
            right = None if found is None else found.mean == truth.answer
            return SheetItem(image, f"{truth.id} / {found}", correct=right)
        case NameRecord():
            return SheetItem(image, f"{truth.names[0]} / {found}", correct=found in truth.names)
        case DescribedRecord():
            return SheetItem(image, f"{truth.names[truth.answer]} / {found}")
    return SheetItem(image, f"{truth} / {found}")
