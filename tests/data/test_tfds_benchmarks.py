"""Benchmarks out of tensorflow-datasets, prepared by its own builders, against the raw files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import CaptionRecord, ChoiceRecord
from kosmos2_jax.data.benchmarks.writing import write
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.data.tfds_benchmarks import COPIES, write_published

from .. import programs
from . import choice_files
from .task_figures import png, write_files


def good_files() -> dict[str, Any]:
    """Examples that can be asked: the builders take nothing else."""
    files = choice_files.all_files()
    lines = {name: files[name][:10] for name in files if name.endswith(".jsonl")}
    for number, line in enumerate(lines["piqa/valid.jsonl"]):
        line["id"] = str(number)
    labels = files["piqa/valid-labels.lst"].splitlines()[:10]
    story = "storycloze/cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
    table = "\n".join(files[story].splitlines()[:11]) + "\n"
    return lines | {"piqa/valid-labels.lst": "\n".join(labels) + "\n", story: table}


def prepare(
    name: str, data_dir: Path, split: str, generate: Callable[[Any], Iterator[Any]]
) -> None:
    """Has the dataset's own builder write what `generate(builder)` gives."""
    builder = tfds.builder(name, data_dir=data_dir)
    builder._split_generators = lambda *_: {split: generate(builder)}
    builder.download_and_prepare()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files."""
    folder = tmp_path_factory.mktemp("raw")
    write_files(folder, good_files())
    return folder


def of(records: Any) -> list[Any]:
    """What is asked and true, whatever the ids and the order."""
    return sorted(((r.options, r.answer) for r in records), key=repr)


ARGUMENTS: Mapping[str, Callable[[list[Path]], dict[str, Any]]] = {
    "hellaswag": lambda paths: {"filepath": paths[0]},
    "piqa": lambda paths: dict(zip(("data_path", "label_path"), paths, strict=True)),
    "boolq": lambda paths: {"data_file": paths[0], "split": "validation"},
    "cb": lambda paths: {"data_file": paths[0], "split": "validation"},
    "copa": lambda paths: {"data_file": paths[0], "split": "validation"},
    "winogrande": lambda paths: {"filepath": paths[0]},
    "storycloze": lambda paths: {"filepath": paths[0]},
}


@pytest.mark.parametrize("task", ARGUMENTS)
def test_language_tasks_equal_the_published_files(task, raw, tmp_path):
    benchmark, copy = BENCHMARKS[task], COPIES[task]
    split = benchmark.splits[0]
    paths = [raw / task / name for name in benchmark.files(split)]
    prepare(
        copy.name,
        tmp_path / "tfds",
        copy.splits[split][0],
        lambda builder: builder._generate_examples(**ARGUMENTS[task](paths)),
    )
    write_published(task, split, tmp_path / "tfds", tmp_path / task)
    reading, published = benchmark.read(tmp_path / task, split), benchmark.read(raw / task, split)
    assert not reading.problems and len(reading.records) == 10
    assert of(reading.records) == of(published.records)
    if task in ("boolq", "cb", "copa"):
        assert reading == published  # ids and order, too


def test_winograd(tmp_path):
    example = {
        "text": "Ann told the judge that she won.",
        "option1": "Ann", "option1_normalized": "Ann",
        "option2": "The judge", "option2_normalized": "the judge",
        "pronoun_start": 24, "pronoun_end": 27, "pronoun_text": "she", "label": 1,
    }  # fmt: skip
    examples = [(number, example | {"idx": number}) for number in range(3)]
    prepare("wsc273", tmp_path / "tfds", "test", lambda _: iter(examples))
    write_published("winograd", "test", tmp_path / "tfds", tmp_path / "winograd")
    first, *_ = BENCHMARKS["winograd"].read(tmp_path / "winograd", "test").records
    said = ("Ann told the judge that Ann", "Ann told the judge that the judge")
    assert isinstance(first, ChoiceRecord) and first.answer == 1
    assert [(option.prompt, option.answer) for option in first.options] == [
        (prompt, "won.") for prompt in said
    ]


def test_captions_of_coco_with_their_pictures(tmp_path, capsys):
    """By the program; the list of one split grows by the others."""
    said = {"test": (1, 2), "train": (3,), "val": (4,)}
    builder_files = tmp_path / "builder"
    for year, numbers in (("train2014", said["train"]), ("val2014", said["test"] + said["val"])):
        images = [
            {"id": n, "file_name": f"COCO_{year}_{n:012d}.jpg", "height": 4, "width": 8}
            for n in numbers
        ]
        for image in images:
            write(builder_files / year / image["file_name"], png(image["id"]))
        categories = [{"id": number, "name": f"thing {number}"} for number in range(80)]
        about = {"images": images, "annotations": [], "categories": categories}
        write(builder_files / f"annotations/instances_{year}.json", about)

    def generate(builder: Any, split: str) -> Iterator[Any]:
        year = "train2014" if split == "train" else "val2014"
        sentences = [{"sentid": n, "raw": f"Caption {n}."} for n in range(5)]
        names = [f"COCO_{year}_{n:012d}.jpg" for n in said[split]]
        return builder._generate_examples(
            {name: {"sentences": sentences} for name in names},
            {
                "image_dir": str(builder_files),
                "annotation_dir": str(builder_files),
                "split_name": year,
                "annotation_type": builder_module.AnnotationType.BBOXES,
                "panoptic_dir": None,
            },
        )

    from tensorflow_datasets.object_detection import coco as builder_module

    builder = tfds.builder("coco_captions", data_dir=tmp_path / "tfds")
    builder._split_generators = lambda *_: {
        "train": generate(builder, "train"),
        "val": generate(builder, "val"),
        "test": generate(builder, "test"),
    }
    builder.download_and_prepare()
    folder = tmp_path / "coco_captions"
    for split in ("train", "test"):  # what is asked of one is written with the other
        arguments = ["coco_captions", "--from", str(folder), "--split", split]
        assert (
            programs.tool("prepare_eval").main([*arguments, "--tfds", str(tmp_path / "tfds")]) == 0
        )
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (told["examples"], told["lost"]) == (len(said[split]), 0)
    read = {split: BENCHMARKS["coco_captions"].read(folder, split).records for split in said}
    captions = tuple(f"Caption {n}." for n in range(5))
    for split, records in read.items():
        for record in records:
            assert isinstance(record, CaptionRecord) and record.captions == captions
            assert Path(record.image).read_bytes() == png(int(record.id))
        assert sorted(int(record.id) for record in records) == list(said[split])


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="run `tfds build super_glue/boolq --data_dir"):
        write_published("boolq", "val", tmp_path, tmp_path / "boolq")
    with pytest.raises(DataError, match="tensorflow-datasets has no refcoco, split val"):
        write_published("refcoco", "val", tmp_path, tmp_path / "refcoco")
