"""Choices about pictures: SEED-Bench, Rendered SST-2, HatefulMemes (spec 5.7 and 5.8)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Pictures,
    Reading,
    json_lines,
    line_of,
    load_json,
    take,
    whole,
)
from kosmos2_jax.data.benchmarks.records import ChoiceRecord, Option
from kosmos2_jax.data.skips import Unusable

SEED_FILES = ("SEED-Bench-image", "SEED-Bench.json")
# Dimensions 1 to 9 are about single pictures; the others are about videos.
SEED_DIMENSIONS = (
    "scene understanding",
    "instance identity",
    "instance attributes",
    "instance location",
    "instances counting",
    "spatial relation",
    "instance interaction",
    "visual reasoning",
    "text understanding",
)
HATEFUL_MEMES_FILES = {"dev": "dev.jsonl", "dev_seen": "dev_seen.jsonl"}
HATEFUL_MEMES_PROMPT = "Question: does this picture contain real hate speech? Answer:"
SST2_SPLITS = ("valid", "test")
SST2_PROMPT = "Question: what is the sentiment of the opinion? Answer:"


def read_seed_bench(folder: Path) -> Reading:
    """Reads the questions of SEED-Bench (Li et al. 2023) about pictures.

    As in the official script line breaks become spaces, and ids are places in the whole list.

    Raises:
      DataError: a file is missing or is another one.
    """
    images, questions = SEED_FILES
    collector, pictures = Collector(), Pictures(folder / images)

    def make(identity: str, item: dict[str, Any]) -> ChoiceRecord:
        image = pictures.path(take(item, "data_id", str))
        question = take(item, "question", str).replace("\n", " ")
        prompt = f"Question: {question} Answer:"
        answers = (line_of(item, f"choice_{letter}") for letter in "abcd")
        options = tuple(Option(prompt, answer) for answer in answers)
        letter = take(item, "answer", str).strip()
        if letter not in ("A", "B", "C", "D"):
            raise Unusable(f"answer is {letter!r}, not one of A, B, C, D")
        dimension = whole(item.get("question_type_id"), range(1, 10), "question_type_id")
        group = SEED_DIMENSIONS[dimension - 1]
        return ChoiceRecord(identity, options, "ABCD".index(letter), image, group)

    path = folder / questions
    for number, item in enumerate(load_json(path, "questions")["questions"]):
        if not isinstance(item, dict):
            collector.lose(str(number), "not a JSON object")
        elif item.get("data_type") == "image":
            collector.add(str(number), functools.partial(make, str(number), item))
    return collector.result(path)


def read_hateful_memes(folder: Path, split: str) -> Reading:
    """Reads HatefulMemes (Kiela et al. 2020); option 0 is "yes".

    ROC-AUC ranks pictures by how much more probable "yes" is than "no".

    Raises:
      DataError: a file is missing or is another one.
    """
    path = folder / HATEFUL_MEMES_FILES[split]
    collector, pictures = Collector(), Pictures(folder)
    options = tuple(Option(HATEFUL_MEMES_PROMPT, answer) for answer in ("yes", "no"))

    def make(load: Callable[[], dict[str, Any]]) -> ChoiceRecord:
        item = load()
        hateful = whole(item.get("label"), range(2), "label")
        image = pictures.path(take(item, "img", str))
        return ChoiceRecord(str(take(item, "id", int)), options, 1 - hateful, image)

    for where, load in json_lines(path):
        collector.add(where, functools.partial(make, load))
    return collector.result(path)


def sst2_files(split: str) -> tuple[str, ...]:
    """Returns what `read_rendered_sst2` needs below its folder."""
    return (f"{split}/positive", f"{split}/negative")


def read_rendered_sst2(folder: Path, split: str) -> Reading:
    """Reads Rendered SST-2 (Radford et al. 2021): pictures in a folder for each sentiment.

    Raises:
      DataError: there are no pictures.
    """
    collector = Collector()
    options = tuple(Option(SST2_PROMPT, answer) for answer in ("positive", "negative"))
    for answer, name in enumerate(sst2_files(split)):
        for path in sorted((folder / name).glob("*.png")):
            identity = path.relative_to(folder).as_posix()
            record = ChoiceRecord(identity, options, answer, str(path))
            collector.add(identity, lambda record=record: record)
    return collector.result(folder)
