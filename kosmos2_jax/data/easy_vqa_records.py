"""easy-vqa as documents: simple questions about pictures of one shape, with a test split."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import easy_vqa
import numpy as np

from kosmos2_jax.data.document_files import encode_png
from kosmos2_jax.data.documents import Document
from kosmos2_jax.vision.preprocessing import load_image, square_pixels

# Of what records hold; those of another version are written anew.
VERSION = 2
SPLITS = ("train", "test")
SHAPES = frozenset({"circle", "rectangle", "triangle"})

Pair = tuple[str, str]  # question, answer


@functools.cache
def question_records(split: str, per_record: int) -> list[tuple[str, str, list[Pair]]]:
    """(picture file, contents, some of its questions with answers), in an order without order.

    Contents are what all questions of the picture together tell, such as "a red circle".

    Args:
      split: "train" or "test".
      per_record: questions of a record; the last of a picture may have fewer.
    """
    questions, paths = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }[split]
    files = paths()
    by_picture: dict[int, list[Pair]] = {}
    for question, answer, picture in zip(*questions(), strict=True):
        by_picture.setdefault(picture, []).append((question, answer))
    rng = np.random.default_rng(0)
    found = []
    for picture, pairs in sorted(by_picture.items()):
        rng.shuffle(pairs)
        told = contents(pairs)
        for start in range(0, len(pairs), per_record):
            found.append((files[picture], told, pairs[start : start + per_record]))
    return [found[i] for i in rng.permutation(len(found))]


def easy_vqa_record(index: int, split: str, per_record: int, image_size: int) -> Document:
    """Record `index` of `question_records` with its picture."""
    file, told, pairs = question_records(split, per_record)[index]
    return Document(
        kind="instruction",
        images=(_picture(file, image_size),),
        content={"contents": told, "turns": [list(pair) for pair in pairs]},
        size=None,
        source="easy_vqa",
        key=f"{split} {index}",
    )


def contents(pairs: Sequence[Pair]) -> str:
    """The one object of a picture, as far as answers tell: "a red circle", "a red shape"."""
    answers = {answer for question, answer in pairs if question.startswith("what")}
    shapes, colors = answers & SHAPES, answers - SHAPES
    return " ".join(["a", *colors, *(shapes or {"shape"})])


@functools.cache  # several records share a picture
def _picture(file: str, image_size: int) -> bytes:
    return encode_png(square_pixels(load_image(file), image_size))


def sentences() -> Iterator[str]:
    """Training questions with answers, as text for a tokenizer."""
    for _, _, pairs in question_records("train", 1):
        for question, answer in pairs:
            yield f"Question: {question} Answer: {answer}"
