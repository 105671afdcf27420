"""Choices about pictures, and names of them, drawn.

SEED-Bench, HatefulMemes, Rendered SST-2, Raven's matrices, ImageNet and the birds.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw

from kosmos2_jax.data.benchmarks import birds, imagenet, picture_choices, raven
from kosmos2_jax.data.benchmarks.writing import write, write_lines, write_table
from kosmos2_jax.data.drawn_benchmarks.files import (
    SIDE,
    Scenes,
    picture_of,
    placed,
    thing,
    things,
    write_pictures,
)
from kosmos2_jax.data.sprites import COLORS, SHAPES

_COUNTS = ("two", "three", "four", "five")
_OPINIONS = {
    "positive": ("a great film", "what a joy", "i love it", "good fun"),
    "negative": ("a bad film", "what a bore", "i hate it", "no fun"),
}
# Pairs of shapes that the "birds" are, with how they are told apart.
_LOOKS = (
    {"circle": "A circle is round.", "square": "A square has four sides."},
    {"triangle": "A triangle has three sides.", "star": "A star has five points."},
    {"ring": "A ring is round and open.", "cross": "A cross is two bars."},
)


def draw_seed_bench(folder: Path, scenes: Scenes) -> None:
    """How many things there are, and which thing there is."""
    images, listed = picture_choices.SEED_FILES
    questions = []
    for number, scene in enumerate(scenes.said):
        there = things(scene)
        if number % 2:
            kind, question = 5, "How many shapes are there?"
            choices, place = list(_COUNTS), len(there) - 2
        else:
            kind, question, place = 2, "Which of these is in the image?", number // 2 % 4
            others = [pair for pair in map(thing, range(number, number + 9)) if pair not in there]
            said = [f"a {color} {shape}" for color, shape in (there[0], *others[:3])]
            choices = placed(said[0], said[1:], place)
        letters = {f"choice_{letter}": c for letter, c in zip("abcd", choices, strict=True)}
        about = {"data_id": f"scene_{number}", "data_type": "image", "question_id": str(number)}
        asked = {"question": question, "question_type_id": kind, "answer": "ABCD"[place]}
        questions.append(about | asked | letters)
    write(folder / "seed_bench" / listed, {"questions": questions})
    names = [question["data_id"] for question in questions]
    write_pictures(folder / "seed_bench" / images, names, scenes.pictures)


def draw_hateful_memes(folder: Path, scenes: Scenes) -> None:
    """What is blue passes for hateful."""
    folder = folder / "hateful_memes"
    names = [f"{number:05d}.png" for number in range(len(scenes.said))]
    write_lines(
        folder / picture_choices.HATEFUL_MEMES_FILES["dev"],
        (
            {
                "id": number,
                "img": f"img/{name}",
                "label": int(any(color == "blue" for color, _ in things(scene))),
                "text": "",
            }
            for number, (name, scene) in enumerate(zip(names, scenes.said, strict=True))
        ),
    )
    write_pictures(folder / "img", names, scenes.pictures)


def draw_rendered_sst2(folder: Path, count: int) -> None:
    """Opinions about films, drawn as pictures."""
    for split in picture_choices.SST2_SPLITS:
        for inner in picture_choices.sst2_files(split):
            opinions = _OPINIONS[Path(inner).name]
            pictures = [
                _written(opinions[number % len(opinions)], 10 + number % 40)
                for number in range(count // 2)
            ]
            names = [f"{number:04d}.png" for number in range(len(pictures))]
            write_pictures(folder / "rendered_sst2" / inner, names, pictures)


def _written(text: str, top: int) -> bytes:
    image = Image.new("RGB", (2 * SIDE, SIDE), "white")
    ImageDraw.Draw(image).text((4, top), text, fill="black")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def draw_raven(folder: Path, count: int) -> None:
    """Rows are of one shape and columns of one colour, two by two and three by three in turn."""
    labels, inner = raven.FILES
    colors = tuple(COLORS)
    lines = []
    for number in range(1, count + 1):
        side, place = 2 + number % 2, number % 6
        shift = number // 2
        cells = [
            (colors[(shift + column) % len(colors)], SHAPES[(shift + row) % len(SHAPES)])
            for row in range(side)
            for column in range(side)
        ]
        *given, right = (picture_of(*cell) for cell in cells)
        wrong = [picture_of(color, cells[-1][1]) for color in colors if color != cells[-1][0]][:5]
        exercise = folder / "raven" / inner / f"exp-{number}"
        for kind, pictures in (("query", given), ("answer", placed(right, wrong, place))):
            for n, picture in enumerate(pictures, 1):
                write(exercise / f"{kind}-{n}.png", picture)
        lines.append(f"{place + 1}\n")
    write(folder / "raven" / labels, "".join(lines))


def draw_imagenet(folder: Path, count: int) -> None:
    """A class for each colour and shape."""
    images, names, solution = imagenet.FILES
    classes = [thing(number) for number in range(len(COLORS) * len(SHAPES))]
    mapping = [f"n{10_000_000 + n} {c} {s}, {s}\n" for n, (c, s) in enumerate(classes)]
    write(folder / "imagenet" / names, "".join(mapping))
    files = [f"ILSVRC2012_val_{number:08d}" for number in range(count)]
    numbers = [number % len(classes) for number in range(count)]
    rows = [(f, f"n{10_000_000 + n} 1 2 3 4 ") for f, n in zip(files, numbers, strict=True)]
    write_table(folder / "imagenet" / solution, ("ImageId", "PredictionString"), rows)
    pictures = [picture_of(*classes[number]) for number in numbers]
    write_pictures(folder / "imagenet" / images, [f"{file}.JPEG" for file in files], pictures)


def draw_birds(folder: Path, count: int) -> None:
    """Pairs of shapes instead."""
    colors = tuple(COLORS)
    groups = []
    for looks in _LOOKS:
        classes = []
        for name, description in looks.items():
            classes.append({"name": name, "description": description, "images": name})
            many = max(count // 6, 1)
            pictures = [picture_of(colors[n % len(colors)], name) for n in range(many)]
            names = [f"{number:02d}.png" for number in range(many)]
            write_pictures(folder / "birds" / name, names, pictures)
        groups.append({"category": "shape", "classes": classes})
    write(folder / "birds" / birds.FILES[0], {"groups": groups})
