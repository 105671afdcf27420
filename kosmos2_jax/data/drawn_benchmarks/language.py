"""Language tasks, written about coloured shapes; and what is larger, and of which colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks import commonsense, language
from kosmos2_jax.data.benchmarks.writing import write, write_lines, write_table
from kosmos2_jax.data.drawn_benchmarks.files import TRAIN, placed, thing

# From the largest on.
_SIZES = ("house", "door", "bed", "chair", "shoe", "ring", "star", "dot")
# Words before a thing, the thing, and its colour.
_COLORS = (
    ("the", "sun", "yellow"),
    ("the", "sea", "blue"),
    ("", "grass", "green"),
    ("", "blood", "red"),
    ("", "snow", "white"),
    ("", "coal", "black"),
    ("a", "plum", "purple"),
    ("a", "pig", "pink"),
    ("", "bread", "brown"),
    ("an", "elephant", "grey"),
    ("a", "lemon", "yellow"),
    ("a", "carrot", "orange"),
)


def draw_language(folder: Path, count: int) -> None:
    """The eight language tasks, with what demonstrations are drawn from."""
    for task, files in language.FILES.items():
        for place, names in enumerate(files.values()):
            numbers = range(TRAIN) if place else range(TRAIN, TRAIN + count)
            paths = [folder / task / name for name in names]
            if task == "winograd":
                _write_winograd(paths[0], numbers)
            elif task == "storycloze":
                _write_storycloze(paths[0], numbers)
            elif task == "piqa":
                write_lines(paths[0], (_piqa(number)[0] for number in numbers))
                write(paths[1], "".join(f"{_piqa(number)[1]}\n" for number in numbers))
            else:
                write_lines(paths[0], map(_ITEMS[task], numbers))


def _named(number: int) -> str:
    return " ".join(thing(number))


def _hellaswag(number: int) -> dict[str, Any]:
    one, other = _named(number), _named(number + 1)
    wrong = ["what color is it.", "two three four five.", "of an image and."]
    start = f"An image of a {one} and a {other}."
    return {
        "ind": number,
        "activity_label": "Two shapes",
        "ctx_a": start,
        "ctx_b": f"the {one}",
        "ctx": f"{start} the {one}",
        "endings": placed(f"is left of the {other}.", wrong, number % 4),
        "label": number % 4,
        "split_type": "indomain",
        "source_id": f"drawn~{number}",
    }


def _boolq(number: int) -> dict[str, Any]:
    one, other = _named(number), _named(number + 1)
    return {
        "passage": f"An image of a {one} left of a {other}.",
        "question": f"is there a {one if number % 2 else _named(number + 2)} in the image",
        "idx": number,
        "label": number % 2 == 1,
    }


def _cb(number: int) -> dict[str, Any]:
    one = _named(number)
    hypotheses = {
        "entailment": f"there is a {one}",
        "contradiction": f"there is no {one}",
        "neutral": f"there is a {_named(number + 1)}",
    }
    label, hypothesis = list(hypotheses.items())[number % 3]
    premise = f"An image of a {one}."
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": number}


def _copa(number: int) -> dict[str, Any]:
    color, shape = thing(number)
    question = "cause" if number % 2 else "effect"
    effect, cause = f"The {shape} is {color}.", f"I painted the {shape} {color}."
    right, premise = (cause, effect) if number % 2 else (effect, cause)
    place = number // 2 % 2
    choices = placed(right, [f"The {shape} is not in the image."], place)
    told = {"premise": premise, "choice1": choices[0], "choice2": choices[1]}
    return told | {"question": question, "label": place, "idx": number}


def _winogrande(number: int) -> dict[str, Any]:
    one, other = _named(number), _named(number + 1)
    return {
        "qID": str(number),
        "sentence": f"The {one} is left of the {other}, so that the _ is the leftmost shape.",
        **dict(zip(("option1", "option2"), placed(one, [other], number % 2), strict=True)),
        "answer": str(number % 2 + 1),
    }


_ITEMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "hellaswag": _hellaswag,
    "boolq": _boolq,
    "cb": _cb,
    "copa": _copa,
    "winogrande": _winogrande,
}


def _piqa(number: int) -> tuple[dict[str, str], int]:
    """The question and the label, which have files of their own."""
    color, shape = thing(number)
    other, _ = thing(number + 1)
    solutions = placed(f"Take the {color} one.", [f"Take the {other} one."], number % 2)
    goal = f"To make a {color} {shape}:"
    return {"goal": goal, "sol1": solutions[0], "sol2": solutions[1]}, number % 2


def _write_winograd(path: Path, numbers: Sequence[int]) -> None:
    schemas = []
    for number in numbers:
        one, other = (f"the {_named(n)}" for n in (number, number + 1))
        names = "".join(f"<answer>{name}</answer>" for name in placed(one, [other], number % 2))
        schemas.append(
            f"<schema><text><txt1>There is {one} left of {other}, and</txt1><pron>it</pron>"
            "<txt2>is the leftmost shape.</txt2></text>"
            f"<answers>{names}</answers><correctAnswer>{'AB'[number % 2]}</correctAnswer></schema>"
        )
    write(path, f"<collection>{''.join(schemas)}</collection>")


def _write_storycloze(path: Path, numbers: Sequence[int]) -> None:
    columns = ("InputStoryid", *(f"InputSentence{n}" for n in range(1, 5)))
    columns += ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding")
    rows = []
    for number in numbers:
        color, shape = thing(number)
        story = (
            f"There is a {shape}.",
            "It is small.",
            f"I make it {color}.",
            "Now it is in the image.",
        )
        endings = placed(f"It is a {color} {shape}.", [f"It is not {color}."], number % 2)
        rows.append((f"story-{number}", *story, *endings, number % 2 + 1))
    write_table(path, columns, rows)


def draw_common_sense(folder: Path, count: int) -> None:
    """RelativeSize, MemoryColor and ColorTerms; the last two have a dozen things at most."""
    pairs = [f"{large} {small}\n" for large, small in itertools.combinations(_SIZES, 2)]
    write(folder / "relative_size" / commonsense.RELATIVE_SIZE_FILE, "".join(pairs[:count]))
    known = _COLORS[:count]
    rows = [(number, *row) for number, row in enumerate(known)]
    columns = ("Index", "Descriptor", "Item", "Color")
    write_table(folder / "memory_color" / commonsense.MEMORY_COLOR_FILE, columns, rows)
    table = folder / "color_terms" / commonsense.COLOR_TERMS_FILE
    write_table(table, ("object", "color"), (row[1:] for row in known))
