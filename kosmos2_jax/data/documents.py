"""A document: what a source holds for one training example, and how it lies in TFRecords.

Readers yield documents, `tools/prepare_data.py` stores them, and seqio tasks turn them into
examples. Pictures stay encoded all the way.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from kosmos2_jax.data.skips import DataError
from kosmos2_jax.data.tf_records import make_example, parse_example

KINDS = ("text", "caption", "grounded", "interleaved", "instruction", "scene")


@dataclasses.dataclass(frozen=True)
class Document:
    """One training example as its source gives it, before any token.

    Attributes:
      kind: one of `KINDS`.
      images: encoded pictures (JPEG, PNG, ...), in reading order.
      content: what JSON can hold, by kind:
        text: `{"text": str}`;
        caption: `{"caption": str}`, and "metadata", text and numbers by name, where its reader was
        told to keep any;
        grounded: `{"caption": str, "noun_chunks": [[start, end, x1, y1, x2, y2, score], ...],
        "ref_exps": [same]}`, offsets in characters of the caption, half-open, and boxes as
        fractions of the original picture (spec section 6), and "metadata" as of a caption;
        interleaved: `{"parts": [str | int, ...]}`, a str is text, an int an index into `images`;
        instruction: `{"turns": [[question, answer], ...]}`, the picture, if any, before the first
        question;
        scene: see `kosmos2_jax.data.scene_records.SceneAnnotation`.
      size: width and height of the original picture in pixels, where a crop needs to know them
        (grounded).
      source: name of the source, for counts and losses by source.
      key: stable id within the source (file and row), for messages.
    """

    kind: str
    images: tuple[bytes, ...]
    content: dict[str, Any]
    size: tuple[int, int] | None
    source: str
    key: str


def to_tf_example(document: Document) -> bytes:
    """Serialises a document as a tf.train.Example.

    Its features are `images`, a list of bytes, and `document`, JSON text of all the rest.

    Raises:
      DataError: the document is of an unknown kind, or JSON or UTF-8 cannot hold its content.
    """
    if document.kind not in KINDS:
        raise DataError(
            f"Document {document.key!r} of {document.source!r} is of unknown kind "
            f"{document.kind!r}: use one of {', '.join(KINDS)}."
        )
    fields = {
        "kind": document.kind,
        "content": document.content,
        "size": document.size,
        "source": document.source,
        "key": document.key,
    }
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Document {document.key!r} of {document.source!r} cannot be stored: {error}."
        ) from None
    return make_example({"images": document.images, "document": [text]})


def from_tf_example(serialised: bytes) -> Document:
    """Reads what `to_tf_example` wrote.

    Raises:
      DataError: these bytes are no such record.
    """
    try:
        features = parse_example(serialised)
        fields = json.loads(features["document"][0])
        kind, source, key, size = (fields[name] for name in ("kind", "source", "key", "size"))
        # All that counts and messages rest upon. What is in the content, its encoder looks at.
        if not all(isinstance(name, str) for name in (kind, source, key)):
            raise TypeError
        return Document(
            kind=kind,
            images=features.get("images", ()),
            content=fields["content"],
            size=None if size is None else (size[0], size[1]),
            source=source,
            key=key,
        )
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        raise DataError(
            "A record is damaged or was not written by tools/prepare_data.py: prepare its source "
            "again."
        ) from None
