"""Instructions: LLaVA-Instruct, Unnatural Instructions, FLAN-style JSON lines (spec section 4.7).

A document is a talk of one or more turns, each a question and its answer. Turns with an empty
question or answer are bad.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import files
from kosmos2_jax.data.readers.base import (
    REQUIRED,
    Note,
    Reading,
    clean_text,
    option,
    parse_json,
    string,
)
from kosmos2_jax.data.readers.captions import checked_picture
from kosmos2_jax.data.readers.pictures import IMAGES_HELP, picture_store
from kosmos2_jax.data.skips import CLIPPED, Unusable
from kosmos2_jax.grounding.tags import IMAGE_OPEN

Turn = list[str]  # [question, answer]


def parse_turn(question: str, answer: str, note: Note) -> Turn:
    """Returns question and answer cleaned, without space around them."""
    question = clean_text(question, "question", note).strip()
    return [question, clean_text(answer, "answer", note).strip()]


@dataclasses.dataclass(frozen=True)
class LlavaOptions:
    """Settings of `read_llava`."""

    images: str = option(REQUIRED, IMAGES_HELP)


def parse_llava(record: Any, note: Note) -> tuple[str | None, list[Turn]]:
    """Returns name of the picture, if there is one, and turns of a record of LLaVA-Instruct.

    Its `conversations` go between "human" and "gpt"; `<image>`, at either end of the first
    question, is taken out, for the picture stands before the first question anyway.

    Raises:
      Unusable: the record is malformed, speakers do not alternate, or the talk needs a picture
        that is elsewhere than in the first question.
    """
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise Unusable("no list 'conversations'")
    name = record.get("image")
    if name is not None and not isinstance(name, str):
        raise Unusable("image is not a name")
    said = []
    for i, entry in enumerate(record["conversations"]):
        if not isinstance(entry, dict) or entry.get("from") != ("human", "gpt")[i % 2]:
            raise Unusable("speakers do not alternate")
        said.append(string(entry, "value"))
    if len(said) % 2:
        note(f"{CLIPPED}question without an answer")
        said.pop()
    if not said:
        raise Unusable("empty conversation")
    markers = said[0].count(IMAGE_OPEN)
    if markers > 1 or any(IMAGE_OPEN in text for text in said[1:]):
        raise Unusable("picture not before the first question")
    if markers and name is None:
        raise Unusable("picture missing")
    said[0] = said[0].replace(IMAGE_OPEN, "")
    pairs = zip(said[::2], said[1::2], strict=True)
    return name, [parse_turn(question, answer, note) for question, answer in pairs]


def read_llava(path: str, reading: Reading, options: LlavaOptions) -> Iterator[Document]:
    """Yields the talks of a file of LLaVA-Instruct: a JSON list, or JSON lines (.jsonl).

    Raises:
      DataError: the file is not a JSON list, or there are no pictures where `options.images` says.
    """
    store = picture_store(options.images, path)

    def parse(key: str, record: Any) -> Iterator[Document]:
        if isinstance(record, bytes):
            record = parse_json(record)
        name, turns = parse_llava(record, reading.note)
        images = [] if name is None else [checked_picture(store.get(name), reading.pictures)[0]]
        yield reading.document("instruction", key, {"turns": turns}, *images)

    records = files.json_list(path) if path.endswith(".json") else files.lines(path)
    return reading.documents(records, parse)


@dataclasses.dataclass(frozen=True)
class UnnaturalOptions:
    """Settings of `read_unnatural`; the core set is what Kosmos-2 was tuned on (spec 4.7)."""

    reformulations: bool = option(
        False, "take paraphrases too; Kosmos-1 takes the 68,478 core ones only"
    )


def parse_unnatural(raw: bytes, reformulations: bool, note: Note) -> list[Turn]:
    """Returns the turns of a line of Unnatural Instructions, each of which is an example.

    The question is `instruction_with_input`, the published concatenation. Malformed instances are
    skipped one by one.

    Raises:
      Unusable: the line is not a JSON object in UTF-8 with a list `instances`.
    """
    record = parse_json(raw)
    instances = record.get("instances")
    if not isinstance(instances, list):
        raise Unusable("no list 'instances'")
    more = record.get("reformulations") if reformulations else None
    turns = []
    for instance in [*instances, *(more if isinstance(more, list) else ())]:
        try:
            if not isinstance(instance, dict):
                raise Unusable("instance is not a JSON object")
            question = string(instance, "instruction_with_input")
            turns.append(parse_turn(question, string(instance, "output"), note))
        except Unusable as problem:
            note(problem.reason)
    return turns


def read_unnatural(
    path: str, reading: Reading, options: UnnaturalOptions = UnnaturalOptions()
) -> Iterator[Document]:
    """Yields the examples of a file of Unnatural Instructions, `core_data.jsonl` or `full_data`."""

    def parse(key: str, raw: bytes) -> Iterator[Document]:
        for i, turn in enumerate(parse_unnatural(raw, options.reformulations, reading.note)):
            yield reading.document("instruction", f"{key}.{i}", {"turns": [turn]})

    return reading.documents(files.lines(path), parse)


@dataclasses.dataclass(frozen=True)
class FlanOptions:
    """Settings of `read_flan`."""

    inputs_field: str = option("inputs", "field of the question")
    targets_field: str = option("targets", "field of the answer")


def parse_flan(raw: bytes, options: FlanOptions, note: Note) -> Turn:
    """Returns the turn of a line such as `{"inputs": "...", "targets": "..."}`.

    Raises:
      Unusable: the line is not a JSON object in UTF-8 with these two strings.
    """
    record = parse_json(raw)
    question, answer = string(record, options.inputs_field), string(record, options.targets_field)
    return parse_turn(question, answer, note)


def read_flan(
    path: str, reading: Reading, options: FlanOptions = FlanOptions()
) -> Iterator[Document]:
    """Yields the examples of a file of JSON lines in the style of FLAN."""

    def parse(key: str, raw: bytes) -> Iterator[Document]:
        turn = parse_flan(raw, options, reading.note)
        yield reading.document("instruction", key, {"turns": [turn]})

    return reading.documents(files.lines(path), parse)
