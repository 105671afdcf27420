"""Tiny documents, and folders of them as `tools/prepare_data.py` leaves them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image

from kosmos2_jax.data.documents import Document, to_tf_example

WORDS = ("red", "blue", "green", "star", "circle", "ring", "small", "large")


def picture(number: int, size: int = 16) -> bytes:
    """A PNG whose colour tells its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256, 99)).save(buffer, "PNG")
    return buffer.getvalue()


def words(number: int, count: int) -> str:
    return " ".join(WORDS[(number + k * k) % len(WORDS)] for k in range(count))


def document(kind: str, number: int, **changes: Any) -> Document:
    """A good document of a kind; its number is the first picture's, and its key."""
    images: tuple[bytes, ...] = (picture(number),)
    size = None
    content: dict[str, Any]
    if kind == "text":
        images, content = (), {"text": "\n".join(words(number + k, 4) for k in range(3))}
    elif kind == "caption":
        content = {"caption": words(number, 2 + number % 5)}
    elif kind == "grounded":
        caption = f"a {words(number, 2)} and a {words(number + 3, 2)}"
        middle = caption.index(" and ")
        boxes = [
            [0, middle, 0.1, 0.1, 0.6, 0.6, 0.9],
            [middle + 5, len(caption), 0.5, 0.5, 0.9, 0.9, 0.8],
        ]
        content = {"caption": caption, "noun_chunks": boxes, "ref_exps": boxes}
        size = (16, 16)
    elif kind == "interleaved":
        images = (picture(number), picture(number))
        content = {"parts": [0, words(number, 3), 1, words(number + 1, 3)]}
    else:
        images = images if number % 2 else ()
        content = {"turns": [[words(number, 2), words(number, 1)]]}
    values = {"kind": kind, "images": images, "content": content, "size": size}
    values |= {"source": f"{kind} source", "key": str(number)}
    return Document(**(values | changes))


def write(folder: Path, documents: Iterable[Document], files: int = 4) -> str:
    """Writes a finished split "train"; gives the folder's name."""
    folder.mkdir(parents=True)
    records: list[list[bytes]] = [[] for _ in range(files)]
    for index, one in enumerate(documents):
        records[index % files].append(to_tf_example(one))
    for index, mine in enumerate(records):
        with tf.io.TFRecordWriter(str(folder / shard_name(index, files))) as writer:
            for record in mine:
                writer.write(record)
    (folder / "train.json").write_text(json.dumps({}))
    return str(folder)


def shard_name(index: int, files: int) -> str:
    return f"train-{index:05d}-of-{files:05d}.tfrecord"


def write_all(folder: Path, count: int, kinds: Sequence[str]) -> Path:
    """A folder for `kosmos2_jax.tasks.mixtures` with so many documents of each kind of task."""
    documents = {
        "text": "text",
        "captions": "caption",
        "grit": "grounded",
        "interleaved": "interleaved",
        "language_instructions": "instruction",
        "visual_instructions": "instruction",
    }
    for place in kinds:
        numbers = range(count)
        if documents[place] == "instruction":
            numbers = range(place == "visual_instructions", 2 * count, 2)
        write(folder / place, (document(documents[place], number) for number in numbers))
    return folder
