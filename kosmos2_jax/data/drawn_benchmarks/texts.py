"""Captions and questions with free answers, drawn: Flickr30k, COCO, VQAv2, VizWiz and WebSRC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks import captions, questions
from kosmos2_jax.data.benchmarks.writing import write, write_table
from kosmos2_jax.data.drawn_benchmarks.files import SIDE, TRAIN, Scenes, things, write_pictures
from kosmos2_jax.data.drawn_benchmarks.grounding import split_of
from kosmos2_jax.data.easy_vqa_records import easy_vqa_record

_ANSWERS = 10  # that VQAv2 and VizWiz have of each question


def draw_captions(folder: Path, scenes: Scenes) -> None:
    """Flickr30k and COCO in Karpathy's splits."""
    for name in ("flickr30k", "coco"):
        images, files = [], []
        for number, scene in enumerate(scenes.said):
            # The prompt says these words.
            caption = scene.caption.text.removeprefix("An image of ")
            split, said = split_of(number), (caption, scene.inventory.text)
            listed, inner = captions.karpathy_files(name, split)
            image = {"imgid": number, "split": split, "filename": f"{number}.jpg"}
            if name == "coco":
                image |= {"filepath": inner, "cocoid": 1000 + number}
            images.append(image | {"sentences": [{"raw": text} for text in said]})
            files.append(f"{inner}/{number}.jpg")
        write(folder / f"{name}_captions" / listed, {"images": images})
        write_pictures(folder / f"{name}_captions", files, scenes.pictures)


def draw_questions(folder: Path, count: int) -> None:
    """VQAv2: validation, training, and a test set whose answers are not told."""
    folder = folder / "vqav2"
    for split, part, examples in (
        ("val2014", "test", count),
        ("train2014", "train", TRAIN),
        ("test-dev2015", "test", count),
    ):
        images, asked_in, *told_in = questions.vqa_files(split)
        asked, told, pictures = [], [], []
        for number in range(examples):
            question, answer, picture = _easy(part, number)
            pictures.append(picture)
            known = {"question_id": 10 * number, "image_id": number}
            asked.append(known | {"question": question})
            told.append(known | _answers(answer))
        write(folder / asked_in, {"questions": asked})
        for name in told_in:
            write(folder / name, {"annotations": told})
        names = [f"COCO_{images}_{number:012d}.jpg" for number in range(examples)]
        write_pictures(folder / images, names, pictures)


def draw_vizwiz(folder: Path, count: int) -> None:
    """VizWiz: validation and training."""
    folder = folder / "vizwiz"
    for split, part, examples in (("val", "test", count), ("train", "train", TRAIN)):
        images, listed = questions.vizwiz_files(split)
        items, pictures = [], []
        for number in range(examples):
            question, answer, picture = _easy(part, number)
            pictures.append(picture)
            image = {"image": f"VizWiz_{split}_{number:08d}.jpg", "question": question}
            items.append(image | _answers(answer))
        write(folder / listed, items)
        write_pictures(folder / images, [item["image"] for item in items], pictures)


def _easy(part: str, number: int) -> tuple[str, str, bytes]:
    record = easy_vqa_record(number, part, 1, SIDE)
    question, answer = record.content["turns"][0]
    return question, answer, record.images[0]


def _answers(answer: str) -> dict[str, Any]:
    kind = "yes/no" if answer in ("yes", "no") else "other"
    return {"answer_type": kind, "answers": [{"answer": answer}] * _ANSWERS}


def draw_websrc(folder: Path, scenes: Scenes) -> None:
    """A site of pages that show a scene and tell what is in it."""
    folder = folder / "websrc"
    pages = folder / "scene/01/processed_data"
    rows = []
    names = [f"01{number:05d}" for number in range(len(scenes.said))]
    for name, scene in zip(names, scenes.said, strict=True):
        text = scene.inventory.text
        write(pages / f"{name}.html", f"<html><body><p>{text}</p></body></html>")
        color, shape = things(scene)[0]
        question = f"what color is the {shape}?"
        rows.append((question, f"sc{name}0000", 2, text.index(color), color))
    write_pictures(pages, [f"{name}.png" for name in names], scenes.pictures)
    columns = ("question", "id", "element_id", "answer_start", "answer")
    write_table(folder / "scene/01/dataset.csv", columns, rows)
    write(folder / "dataset_split.json", {"train": [], "dev": ["sc01"], "test": []})
