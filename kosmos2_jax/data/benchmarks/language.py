"""Language tasks as choices among continuations (spec section 5.6).

The papers' templates are not published: these are GPT-3's (Brown et al. 2020, appendix G,
https://arxiv.org/abs/2005.14165). In Winograd and Winogrande the candidate stands in the prompt,
and what follows it is scored ("partial evaluation", Trinh and Le 2018).
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks.reading import (
    Collector,
    Reading,
    csv_rows,
    json_lines,
    line_of,
    read_text,
    take,
    whole,
)
from kosmos2_jax.data.benchmarks.records import ChoiceRecord, Option
from kosmos2_jax.data.skips import DataError, Unusable

# Files of each task below its folder: of the split that is asked, then of the one that
# demonstrations are drawn from. Where nothing was published to train on, these are of StoryCloze's
# other split, and of Winograd's schemas themselves (Brown et al. 2020, section 2.4).
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "hellaswag": {"val": ("hellaswag_val.jsonl",), "train": ("hellaswag_train.jsonl",)},
    "piqa": {
        "val": ("valid.jsonl", "valid-labels.lst"),
        "train": ("train.jsonl", "train-labels.lst"),
    },
    "boolq": {"val": ("BoolQ/val.jsonl",), "train": ("BoolQ/train.jsonl",)},
    "cb": {"val": ("CB/val.jsonl",), "train": ("CB/train.jsonl",)},
    "copa": {"val": ("COPA/val.jsonl",), "train": ("COPA/train.jsonl",)},
    "winograd": {"test": ("WSCollection.xml",)},
    "winogrande": {"val": ("dev.jsonl",), "train": ("train_xl.jsonl",)},
    "storycloze": {
        "test": ("cloze_test_test__spring2016 - cloze_test_ALL_test.csv",),
        "val": ("cloze_test_val__spring2016 - cloze_test_ALL_val.csv",),
    },
}

# The schemas that WSC273 has; the collection has grown since.
WSC273 = 273

_CB_LABELS = {"entailment": "true", "contradiction": "false", "neutral": "neither"}
_BRACKETS = re.compile(r"\[.*?\]")


def read(task: str, folder: Path, split: str) -> Reading:
    """Reads a split of one of the tasks in `FILES`.

    Raises:
      DataError: a file is missing or is another one.
    """
    path, *labels = (folder / name for name in FILES[task][split])
    if task == "piqa":
        return _read_piqa(path, labels[0])
    if task == "winograd":
        return _read_winograd(path)
    if task == "storycloze":
        return _read_storycloze(path)
    parse = _PARSERS[task]
    collector = Collector()
    for where, load in json_lines(path):
        collector.add(where, functools.partial(_parsed, where, load, parse))
    return collector.result(path)


def _parsed(
    where: str,
    load: Callable[[], dict[str, Any]],
    parse: Callable[[str, dict[str, Any]], ChoiceRecord],
) -> ChoiceRecord:
    item = load()
    identity = next((item[name] for name in ("ind", "idx", "qID") if name in item), where)
    return parse(str(identity), item)


def _options(prompt: str, answers: tuple[str, ...]) -> tuple[Option, ...]:
    return tuple(Option(prompt, answer) for answer in answers)


def _hellaswag(identity: str, item: dict[str, Any]) -> ChoiceRecord:
    """ActivityNet's and WikiHow's texts as lm-evaluation-harness cleans them: without [title]."""
    endings = take(item, "endings", list)
    if len(endings) != 4 or not all(isinstance(e, str) and e.strip() for e in endings):
        raise Unusable("not four endings")
    start = f"{line_of(item, 'activity_label')}: {line_of(item, 'ctx_a')}"
    prompt = _plain(f"{start} {take(item, 'ctx_b', str).capitalize()}")
    answer = whole(item.get("label"), range(4), "label")
    return ChoiceRecord(identity, _options(prompt, tuple(map(_plain, endings))), answer)


def _plain(text: str) -> str:
    return " ".join(_BRACKETS.sub("", text.replace(" [title]", ". ")).split())


def _boolq(identity: str, item: dict[str, Any]) -> ChoiceRecord:
    question = line_of(item, "question").removesuffix("?")
    prompt = f"{line_of(item, 'passage')}\nquestion: {question}?\nanswer:"
    right = take(item, "label", bool)
    return ChoiceRecord(identity, _options(prompt, ("no", "yes")), int(right))


def _cb(identity: str, item: dict[str, Any]) -> ChoiceRecord:
    label = take(item, "label", str)
    if label not in _CB_LABELS:
        raise Unusable(f"label is {label!r}, not one of {', '.join(_CB_LABELS)}")
    hypothesis = line_of(item, "hypothesis").removesuffix(".")
    prompt = (
        f"{line_of(item, 'premise')}\nquestion: {hypothesis}. true, false, or neither?\nanswer:"
    )
    answers = tuple(_CB_LABELS.values())
    return ChoiceRecord(identity, _options(prompt, answers), list(_CB_LABELS).index(label))


def _copa(identity: str, item: dict[str, Any]) -> ChoiceRecord:
    question = take(item, "question", str)
    links = {"cause": "because", "effect": "so"}
    if question not in links:
        raise Unusable(f"question is {question!r}, not cause or effect")
    prompt = f"{line_of(item, 'premise').removesuffix('.')} {links[question]}"
    answers = tuple(_small(line_of(item, name)) for name in ("choice1", "choice2"))
    answer = whole(item.get("label"), range(2), "label")
    return ChoiceRecord(identity, _options(prompt, answers), answer)


def _small(text: str) -> str:
    """A sentence as it goes on after "because"; "I" stays."""
    keeps = text.startswith(("I ", "I'"))
    return text if keeps else text[:1].lower() + text[1:]


def _winogrande(identity: str, item: dict[str, Any]) -> ChoiceRecord:
    before, gap, after = line_of(item, "sentence").partition("_")
    if not gap or not after.strip():
        raise Unusable("the sentence has no gap, or nothing after it")
    names = tuple(line_of(item, name) for name in ("option1", "option2"))
    answer = whole(item.get("answer"), (1, 2), "answer") - 1
    return ChoiceRecord(identity, tuple(Option(before + n, after.strip()) for n in names), answer)


_PARSERS = {
    "hellaswag": _hellaswag,
    "boolq": _boolq,
    "cb": _cb,
    "copa": _copa,
    "winogrande": _winogrande,
}


def _read_piqa(questions: Path, labels: Path) -> Reading:
    right = [line for line in read_text(labels).splitlines() if line.strip()]
    lines = list(json_lines(questions))
    if len(lines) != len(right):
        raise DataError(
            f"{str(questions)!r} has {len(lines)} questions but {str(labels)!r} has {len(right)} "
            "labels: they do not belong together."
        )
    collector = Collector()

    def make(where: str, load: Callable[[], dict[str, Any]], label: str) -> ChoiceRecord:
        item = load()
        answers = (line_of(item, "sol1"), line_of(item, "sol2"))
        answer = whole(label, range(2), "label")
        return ChoiceRecord(where, _options(line_of(item, "goal"), answers), answer)

    for (where, load), label in zip(lines, right, strict=True):
        collector.add(where, functools.partial(make, where, load, label))
    return collector.result(questions)


def _read_winograd(path: Path) -> Reading:
    try:
        schemas = ElementTree.fromstring(read_text(path)).findall("schema")
    except ElementTree.ParseError:
        raise DataError(f"{str(path)!r} is not XML: get it again.") from None
    collector = Collector()
    for number, schema in enumerate(schemas[:WSC273]):
        identity = f"schema {number}"
        collector.add(identity, functools.partial(_winograd, identity, schema))
    return collector.result(path)


def _winograd(identity: str, schema: ElementTree.Element) -> ChoiceRecord:
    before, pronoun, after = (
        " ".join((schema.findtext(f"text/{part}") or "").split())
        for part in ("txt1", "pron", "txt2")
    )
    names = tuple(" ".join((a.text or "").split()) for a in schema.findall("answers/answer"))
    if len(names) != 2 or not all((*names, before, pronoun, after)):
        raise Unusable("a text, the pronoun or one of two answers is missing")
    correct = (schema.findtext("correctAnswer") or "").strip().rstrip(".")
    if correct not in ("A", "B"):
        raise Unusable(f"the correct answer is {correct!r}, not A or B")
    options = tuple(Option(f"{before} {_instead(n, before, pronoun)}", after) for n in names)
    return ChoiceRecord(identity, options, "AB".index(correct))


# As lm-evaluation-harness has it for WSC273, so that figures compare.
_SMALL_WITHIN = frozenset("a an the she he it they my his her their".split())
_POSSESSIVE = frozenset("my his her our their".split())


def _instead(name: str, before: str, pronoun: str) -> str:
    """A name as it stands in place of the pronoun: "the" is small within a sentence."""
    first, space, rest = name.partition(" ")
    if not before.endswith(".") and first.lower() in _SMALL_WITHIN:
        name = f"{first.lower()}{space}{rest}"
    return f"{name}'s" if pronoun.lower() in _POSSESSIVE else name


_STORY = tuple(f"InputSentence{number}" for number in range(1, 5))
_ENDINGS = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")


def _read_storycloze(path: Path) -> Reading:
    columns = ("InputStoryid", *_STORY, *_ENDINGS, "AnswerRightEnding")
    collector = Collector()

    def make(identity: str, row: dict[str, str]) -> ChoiceRecord:
        story = " ".join(line_of(row, name) for name in _STORY)
        answers = tuple(line_of(row, name) for name in _ENDINGS)
        answer = whole(row["AnswerRightEnding"], (1, 2), "AnswerRightEnding") - 1
        return ChoiceRecord(identity, _options(story, answers), answer)

    for where, row in csv_rows(path, columns):
        identity = row["InputStoryid"] or where
        collector.add(identity, functools.partial(make, identity, row))
    return collector.result(path)
