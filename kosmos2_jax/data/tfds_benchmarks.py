"""Benchmarks' published files, written out of what tensorflow-datasets has prepared.

Nothing is downloaded. Its copies lack some of what was published, from which follows:

- HellaSwag does not say where the unfinished sentence begins: it is what stands behind the last
  full stop, if that begins with a small letter.
- Ids of HellaSwag, PIQA, Winogrande and StoryCloze are places in its own order.
- `ref_coco` has people's raw words, not the expressions that MDETR asks, and `imagenet2012` has no
  names of classes: neither is read. VQAv2, VizWiz, Flickr30k and the others are not there at all.
"""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.writing import write, write_lines, write_table
from kosmos2_jax.data.skips import DataError

_INFO = "dataset_info.json"
_SPLITS = {"val": ("validation",), "train": ("train",)}
# Behind the last end of a sentence, what begins with a small letter.
_UNFINISHED = re.compile(r"(.*[.!?\"')\]]) ([a-z][^.!?]*)", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?]) ")

# With text as text, and the name of its split as "split".
Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Copy:
    """A benchmark in tensorflow-datasets.

    Attributes:
      name: as "super_glue/boolq".
      splits: those of theirs that are written for a split of ours.
      write: writes examples into the files of the split, at these paths.
    """

    name: str
    splits: Mapping[str, tuple[str, ...]]
    write: Callable[[Iterator[Example], Sequence[Path]], None]


def write_published(task: str, split: str, data_dir: Path, folder: Path) -> None:
    """Writes the files of a split of a benchmark.

    Args:
      task: name in `COPIES`.
      split: of the benchmark.
      data_dir: where tensorflow-datasets prepared its own, usually `~/tensorflow_datasets`.
      folder: of the benchmark.

    Raises:
      DataError: tensorflow-datasets has no such benchmark, or has not prepared it there.
    """
    copy = COPIES.get(task)
    if copy is None or split not in copy.splits:
        raise DataError(
            f"tensorflow-datasets has no {task}, split {split}, with all that is asked; it has "
            f"{', '.join(COPIES)}: get the published files."
        )
    # Not those that were never finished, "incomplete.A1B2_1.0.0".
    versions = [path.parent for path in (data_dir / copy.name).glob(f"[0-9]*.*.*/{_INFO}")]
    if not versions:
        raise DataError(
            f"{str(data_dir / copy.name)!r} holds no prepared dataset: run `tfds build "
            f"{copy.name} --data_dir {data_dir}`, or name the folder where that was done."
        )
    newest = max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    paths = [folder / name for name in BENCHMARKS[task].files(split)]
    copy.write(_examples(newest, copy.splits[split]), paths)


def _examples(version: Path, splits: Sequence[str]) -> Iterator[Example]:
    """In the order of "idx" where there is one; pictures stay encoded."""
    builder = tfds.builder_from_directory(version)
    features = builder.info.features
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
    for split in splits:
        if split not in builder.info.splits:
            raise DataError(f"{str(version)!r} has no split {split!r}: prepare it again.")
        dataset = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
        examples: Iterator[Any] = iter(tfds.as_numpy(dataset))
        if "idx" in features:
            examples = iter(sorted(examples, key=lambda example: example["idx"]))
        for example in examples:
            texts = {name: _text(value) for name, value in example.items() if name != "image"}
            yield {**example, **texts, "split": split}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: _text(inner) for name, inner in value.items()}
    return [_text(inner) for inner in value.tolist()] if getattr(value, "ndim", 0) else value


def _lines(line: Callable[[int, Example], Mapping[str, Any]]) -> Callable[..., None]:
    """Writes a line of JSON for each example, made of its number and itself."""

    def write_all(examples: Iterator[Example], paths: Sequence[Path]) -> None:
        write_lines(paths[0], (line(*numbered) for numbered in enumerate(examples)))

    return write_all


def _hellaswag(number: int, example: Example) -> dict[str, Any]:
    found = _UNFINISHED.fullmatch(example["context"])
    before, unfinished = found.groups() if found else (example["context"], "")
    known = {name: example[name] for name in ("activity_label", "endings", "source_id")}
    return known | {
        "ind": number,
        "ctx_a": before,
        "ctx_b": unfinished,
        "ctx": example["context"],
        "label": int(example["label"]),
    }


def _boolq(number: int, example: Example) -> dict[str, Any]:
    known = {name: example[name] for name in ("passage", "question")}
    return known | {"idx": int(example["idx"]), "label": bool(example["label"])}


def _cb(number: int, example: Example) -> dict[str, Any]:
    label = ("entailment", "contradiction", "neutral")[example["label"]]
    known = {name: example[name] for name in ("premise", "hypothesis")}
    return known | {"idx": int(example["idx"]), "label": label}


def _copa(number: int, example: Example) -> dict[str, Any]:
    known = {name: example[name] for name in ("premise", "choice1", "choice2", "question")}
    return known | {"idx": int(example["idx"]), "label": int(example["label"])}


def _winogrande(number: int, example: Example) -> dict[str, Any]:
    known = {name: example[name] for name in ("sentence", "option1", "option2")}
    return known | {"qID": str(number), "answer": str(example["label"] + 1)}


def _write_piqa(examples: Iterator[Example], paths: Sequence[Path]) -> None:
    questions, labels = paths
    found = list(examples)
    names = ("id", "goal", "sol1", "sol2")
    write_lines(questions, ({name: example[name] for name in names} for example in found))
    write(labels, "".join(f"{example['label']}\n" for example in found))


def _write_storycloze(examples: Iterator[Example], paths: Sequence[Path]) -> None:
    columns = ("InputStoryid", *(f"InputSentence{number}" for number in range(1, 5)))
    columns += ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding")
    rows = (
        (number, *_four(example["context"]), *example["endings"], example["label"])
        for number, example in enumerate(examples)
    )
    write_table(paths[0], columns, rows)


def _four(story: str) -> list[str]:
    """Its four sentences, which were joined by spaces; together they are the same again."""
    parts = _SENTENCE.split(story, maxsplit=3)
    while len(parts) < 4:
        before, _, word = parts.pop().rpartition(" ")
        parts += [before, word]
    return parts


def _write_winograd(examples: Iterator[Example], paths: Sequence[Path]) -> None:
    collection = ElementTree.Element("collection")
    for example in examples:
        schema = ElementTree.SubElement(collection, "schema")
        text = ElementTree.SubElement(schema, "text")
        start, end = example["pronoun_start"], example["pronoun_end"]
        parts = (example["text"][:start], example["text"][start:end], example["text"][end:])
        for name, part in zip(("txt1", "pron", "txt2"), parts, strict=True):
            ElementTree.SubElement(text, name).text = part.strip()
        answers = ElementTree.SubElement(schema, "answers")
        for name in ("option1", "option2"):
            ElementTree.SubElement(answers, "answer").text = example[name]
        ElementTree.SubElement(schema, "correctAnswer").text = "AB"[example["label"]]
    write(paths[0], ElementTree.tostring(collection, encoding="unicode"))


def _write_coco(examples: Iterator[Example], paths: Sequence[Path]) -> None:
    """Adds the splits to the list; other splits that are in it stay."""
    listed, folder = paths
    before = json.loads(listed.read_text())["images"] if listed.exists() else []
    new = []
    for example in examples:
        name, said = example["image/filename"], example["captions"]["text"]
        write(folder / name, example["image"])
        about = {"filepath": folder.name, "filename": name, "cocoid": int(example["image/id"])}
        sentences = [{"raw": text} for text in said]
        new.append(about | {"split": example["split"], "sentences": sentences})
    splits = {image["split"] for image in new}
    kept = [image for image in before if image["split"] not in splits]
    write(listed, {"images": kept + new})


COPIES = {
    "hellaswag": Copy("hellaswag", _SPLITS, _lines(_hellaswag)),
    "piqa": Copy("piqa", _SPLITS, _write_piqa),
    "boolq": Copy("super_glue/boolq", _SPLITS, _lines(_boolq)),
    "cb": Copy("super_glue/cb", _SPLITS, _lines(_cb)),
    "copa": Copy("super_glue/copa", _SPLITS, _lines(_copa)),
    "winograd": Copy("wsc273", {"test": ("test",)}, _write_winograd),
    "winogrande": Copy(
        "winogrande", {"val": ("validation",), "train": ("train_xl",)}, _lines(_winogrande)
    ),
    "storycloze": Copy(
        "story_cloze/2016", {"test": ("test",), "val": ("validation",)}, _write_storycloze
    ),
    # One list of pictures holds both splits that are asked.
    "coco_captions": Copy(
        "coco_captions/2014",
        {"test": ("val", "test"), "val": ("val", "test"), "train": ("train",)},
        _write_coco,
    ),
}
