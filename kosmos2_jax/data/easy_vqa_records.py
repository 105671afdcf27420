"""easy-vqa as documents: simple questions about pictures of one shape, with a test split."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import easy_vqa
import numpy as np

from kosmos2_jax.data.document_files import encode_png
from kosmos2_jax.data.documents import Document
from kosmos2_jax.grounding import Box, GroundedText, Span
from kosmos2_jax.vision.preprocessing import load_image, square_pixels

# Of what records hold; those of another version are written anew.
VERSION = 3
SPLITS = ("train", "test")
SHAPES = frozenset({"circle", "rectangle", "triangle"})

_PLAIN = 24  # grey levels by which pixels of the ground may differ

Pair = tuple[str, str]  # question, answer


@functools.cache
def question_records(split: str, per_record: int) -> list[tuple[str, str, list[Pair]]]:
    """(picture file, what it shows, some questions with answers), in an order without order.

    What it shows is what all its questions together tell, such as "a red circle".

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
        told = tell(pairs)
        for start in range(0, len(pairs), per_record):
            found.append((files[picture], told, pairs[start : start + per_record]))
    return [found[i] for i in rng.permutation(len(found))]


def easy_vqa_record(index: int, split: str, per_record: int, image_size: int) -> Document:
    """Record `index` of `question_records` with its picture."""
    file, told, pairs = question_records(split, per_record)[index]
    picture, box = _picture(file, image_size)
    contents = GroundedText(told, (Span(told, 0, len(told), (box,)),))
    turns = [list(pair) for pair in pairs]
    return Document(
        kind="instruction",
        images=(picture,),
        content={"contents": contents.to_dict(), "turns": turns},
        size=None,
        source="easy_vqa",
        key=f"{split} {index}",
    )


def tell(pairs: Sequence[Pair]) -> str:
    """The one object of a picture, as far as answers tell: "a red circle", "a red shape"."""
    answers = {answer for question, answer in pairs if question.startswith("what")}
    shapes, colors = answers & SHAPES, answers - SHAPES
    return " ".join(["a", *colors, *(shapes or {"shape"})])


@functools.cache  # several records share a picture
def _picture(file: str, image_size: int) -> tuple[bytes, Box]:
    """The picture as PNG, and where its one object is: where it differs from its plain ground."""
    pixels = square_pixels(load_image(file), image_size)
    ground = np.median(pixels, axis=(0, 1))
    inside = np.abs(pixels - ground).max(axis=2) > _PLAIN
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return encode_png(pixels), Box(*(float(edge) / image_size for edge in edges))


def sentences() -> Iterator[str]:
    """Training questions with answers, as text for a tokenizer."""
    for _, _, pairs in question_records("train", 1):
        for question, answer in pairs:
            yield f"Question: {question} Answer: {answer}"
