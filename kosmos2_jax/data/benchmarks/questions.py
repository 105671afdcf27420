"""Questions about pictures with free answers: VQAv2, VizWiz and WebSRC (spec 5.5 and 5.8)."""

from __future__ import annotations

import functools
import html.parser
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Pictures,
    Reading,
    csv_rows,
    line_of,
    load_json,
    load_json_list,
    read_text,
    take,
)
from kosmos2_jax.data.benchmarks.records import QuestionRecord
from kosmos2_jax.data.skips import DataError, Unusable

# Pictures of test-dev are those of the whole test set.
_VQA_IMAGES = {
    "val2014": "val2014",
    "test-dev2015": "test2015",
    "test2015": "test2015",
    "train2014": "train2014",
}
VQA_SPLITS = ("val2014", "test-dev2015", "test2015")
VIZWIZ_SPLITS = ("val", "test")
WEBSRC_SPLITS = ("dev",)


def vqa_files(split: str) -> tuple[str, ...]:
    """Returns what `read_vqa` needs below its folder; test splits have no annotations."""
    questions = f"v2_OpenEnded_mscoco_{split}_questions.json"
    secret = split.startswith("test")
    answers = () if secret else (f"v2_mscoco_{split}_annotations.json",)
    return (_VQA_IMAGES[split], questions, *answers)


def read_vqa(folder: Path, split: str) -> Reading:
    """Reads VQAv2 (Goyal et al. 2017, https://visualqa.org/download.html).

    Raises:
      DataError: a file is missing or is another one.
    """
    images, questions, *answers = vqa_files(split)
    collector, pictures = Collector(), Pictures(folder / images)
    annotations: dict[int, dict[str, Any]] = {}
    for file in answers:
        for number, item in enumerate(load_json(folder / file, "annotations")["annotations"]):
            identity = item.get("question_id") if isinstance(item, dict) else None
            if not isinstance(identity, int) or identity in annotations:
                collector.lose(f"annotation {number}", f"its question is {identity!r}, no new one")
            else:
                annotations[identity] = item
    asked = load_json(folder / questions, "questions")["questions"]

    def make(identity: str, item: dict[str, Any]) -> QuestionRecord:
        number = take(item, "image_id", int)
        image = pictures.path(f"COCO_{images}_{number:012d}.jpg")
        question = line_of(item, "question")
        if not answers:
            return QuestionRecord(identity, image, question, ())
        annotation = annotations.get(item["question_id"])
        if annotation is None:
            raise Unusable("no annotation")
        if annotation.get("image_id") != number:
            raise Unusable("its annotation is of another picture")
        group = take(annotation, "answer_type", str)
        return QuestionRecord(identity, image, question, _answers(annotation), group)

    for number, item in enumerate(asked):
        known = isinstance(item, dict) and isinstance(item.get("question_id"), int)
        identity = str(item["question_id"]) if known else f"question {number}"
        if not known:
            collector.lose(identity, "no 'question_id' of type int")
            continue
        collector.add(identity, functools.partial(make, identity, item))
    ids = {str(item.get("question_id")) for item in asked if isinstance(item, dict)}
    for identity in sorted(number for number in annotations if str(number) not in ids):
        collector.lose(str(identity), "has an annotation but is not among the questions")
    return collector.result(folder / questions)


def vizwiz_files(split: str) -> tuple[str, ...]:
    """Returns what `read_vizwiz` needs below its folder."""
    return (split, f"Annotations/{split}.json")


def read_vizwiz(folder: Path, split: str) -> Reading:
    """Reads VizWiz-VQA (Gurari et al. 2018, https://vizwiz.org/tasks-and-datasets/vqa/).

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / vizwiz_files(split)[1]
    collector, pictures = Collector(), Pictures(folder / split)

    def make(identity: str, item: dict[str, Any]) -> QuestionRecord:
        image = pictures.path(take(item, "image", str))
        question = line_of(item, "question")
        if split == "test":
            return QuestionRecord(identity, image, question, ())
        return QuestionRecord(
            identity, image, question, _answers(item), take(item, "answer_type", str)
        )

    for number, item in enumerate(load_json_list(path)):
        # A question of VizWiz is known by its picture.
        known = isinstance(item, dict) and isinstance(item.get("image"), str)
        identity = item["image"] if known else f"question {number}"
        collector.add(identity, functools.partial(make, identity, item))
    return collector.result(path)


def _answers(annotation: dict[str, Any]) -> tuple[str, ...]:
    """What people answered; all ten, or accuracy would be another one."""
    answers = tuple(take(answer, "answer", str) for answer in take(annotation, "answers", list))
    if len(answers) != 10:
        raise Unusable(f"{len(answers)} answers instead of 10")
    return answers


def websrc_files(split: str) -> tuple[str, ...]:
    """Returns what `read_websrc` needs below its folder."""
    return ("dataset_split.json",)


def read_websrc(folder: Path, split: str) -> Reading:
    """Reads WebSRC (Chen et al. 2021, https://github.com/X-LANCE/WebSRC-Baseline).

    The context is the text of the page as a reader sees it.

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / "dataset_split.json"
    sites = load_json(path, split)[split]
    collector = Collector()
    for file in sorted(folder.glob("*/*/dataset.csv")):
        # A site is called by two letters of its domain and its number: "bo01" is book/01.
        if file.parent.parent.name[:2] + file.parent.name not in sites:
            continue
        pages = file.parent / "processed_data"
        make = functools.partial(_websrc_record, pages, Pictures(pages))
        for where, row in csv_rows(file, ("question", "id", "answer")):
            identity = row["id"] or f"{file} {where}"
            collector.add(identity, functools.partial(make, identity, row))
    return collector.result(path)


def _websrc_record(
    pages: Path, pictures: Pictures, identity: str, row: dict[str, str]
) -> QuestionRecord:
    page = identity[2:9]
    image = pictures.path(f"{page}.png")
    context = _page_text(pages / f"{page}.html")
    question, answer = line_of(row, "question"), line_of(row, "answer")
    return QuestionRecord(identity, image, question, (answer,), context=context)


@functools.lru_cache(maxsize=8)
def _page_text(path: Path) -> str:
    try:
        text = read_text(path)
    except DataError as error:
        raise Unusable(str(error)) from None
    parser = _TextParser()
    parser.feed(text)
    parser.close()
    return " ".join(" ".join(parser.parts).split())


class _TextParser(html.parser.HTMLParser):
    """Gathers the text of a page as a reader sees it."""

    _UNSEEN = ("script", "style", "noscript", "template")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self._UNSEEN

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self._UNSEEN and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)
