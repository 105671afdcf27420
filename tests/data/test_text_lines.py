"""Text becomes lines and sequences as spec section 4.2 says."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.skips import Skips
from kosmos2_jax.data.text_lines import encode_lines, full_sentences, pack_texts
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary


@functools.cache
def _released(folder: Path) -> Kosmos2Vocabulary:
    return Kosmos2Vocabulary(folder / "sentencepiece.bpe.model")


@pytest.fixture
def released(assets: Path) -> Kosmos2Vocabulary:
    return _released(assets / "tokenizer")


def document(text: object, key: str = "0") -> Document:
    return Document("text", (), {"text": text}, None, "pile", key)


def test_each_line_is_tokenised_on_its_own(released: Kosmos2Vocabulary) -> None:
    lines = encode_lines("An image of\n\n the\r\n\n \t \nin a", released)
    assert lines == [[712, 1648, 9, 64006], [5, 64006], [12, 10, 2]]


def test_text_without_tokens_has_no_lines(released: Kosmos2Vocabulary) -> None:
    assert encode_lines("", released) == encode_lines("\n\n \n\t", released) == []


def test_tags_in_text_are_text(released: Kosmos2Vocabulary) -> None:
    (line,) = encode_lines("<image>", released)
    assert line == [8001, 21286, 6785, 2]


def _restated(documents: list[list[list[int]]], limit: int) -> list[list[int]]:
    """The rule in the words of spec 4.2, on lines with markers, of one file."""
    emitted, current = [], [0]
    for lines in documents:
        for line in lines:
            if len(line) >= limit:  # "a line >= 2048 tokens is truncated to 2047"
                line = line[: limit - 1]
            fits = len(current) + len(line) <= limit
            if fits:  # "a line is appended whole if it fits in 2048"
                current = current + line
            else:  # "otherwise the current sequence is emitted and a new one starts with <s>"
                emitted.append(current)
                current = [0, *line]
    emitted.append(current)  # "leftovers at file end are emitted"
    return [sequence for sequence in emitted if len(sequence) > 1]


LINES = st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=9), max_size=6)


@given(st.lists(LINES, max_size=6), st.integers(2, 12))
@settings(deadline=None)
def test_packing_is_the_rule_of_the_spec(documents: list[list[list[int]]], limit: int) -> None:
    flat = [line for lines in documents for line in lines]
    assert list(full_sentences(flat, 0, limit)) == _restated(documents, limit)


@given(st.lists(LINES, max_size=6), st.integers(10, 40))
@settings(deadline=None)
def test_nothing_is_lost_or_doubled_where_lines_fit(
    documents: list[list[list[int]]], limit: int
) -> None:
    flat = [line for lines in documents for line in lines]
    packed = list(full_sentences(flat, 0, limit))
    assert [t for sequence in packed for t in sequence[1:]] == [t for line in flat for t in line]
    assert all(sequence[0] == 0 and 1 < len(sequence) <= limit for sequence in packed)


@given(st.lists(st.text(), max_size=6), st.integers(2, 20))
@settings(deadline=None)
def test_any_text_packs_as_the_rule_says(
    released_vocabulary: Kosmos2Vocabulary, texts: list[str], limit: int
) -> None:
    skips = Skips()
    encoded = list(pack_texts(map(document, texts), released_vocabulary, limit, skips))
    lines = [encode_lines(text, released_vocabulary) for text in texts]
    assert [e["targets"].tolist() for e in encoded] == _restated(lines, limit)
    assert skips.num_kept("pile") + skips.num_skipped("pile") == len(texts)
    assert skips.num_kept("pile") == sum(map(bool, lines))
    too_long = sum(len(line) >= limit for document_lines in lines for line in document_lines)
    assert skips.reasons("pile").get("clipped: line longer than a sequence", 0) == too_long


@pytest.fixture(scope="module")
def released_vocabulary(assets: Path) -> Kosmos2Vocabulary:
    return _released(assets / "tokenizer")


def test_features(released: Kosmos2Vocabulary) -> None:
    (features,) = pack_texts([document("the image\nof")], released, 2048, Skips())
    assert features["targets"].tolist() == [0, 5, 1648, 64006, 9, 2]
    assert features["loss_weights"].tolist() == [0, 1, 1, 1, 1, 1]
    assert features["image_slots"].tolist() == [-1] * 6
    assert {name: value.dtype for name, value in features.items()} == {
        "targets": np.int32,
        "loss_weights": np.float32,
        "image_slots": np.int32,
        "images": np.dtype(object),
    }
    assert features["images"].shape == (0,)


def test_documents_are_read_one_by_one(released: Kosmos2Vocabulary) -> None:
    read = []

    def stream() -> Iterator[Document]:
        for i in range(100):
            read.append(i)
            yield document("a the of", str(i))

    packed = pack_texts(stream(), released, 9, Skips())
    assert next(packed)["targets"].tolist() == [0, 10, 5, 9, 2, 10, 5, 9, 2]
    assert len(read) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "text is missing or no text"),
        (3, "text is missing or no text"),
        ("", "text is empty"),
        (" \n\t", "text is empty"),
        ("\u200b", "text is empty"),
        ("a \ud800", "text is not valid Unicode"),
    ],
)
def test_bad_documents_are_counted(text: object, reason: str, released: Kosmos2Vocabulary) -> None:
    skips = Skips()
    assert list(pack_texts([document(text)], released, 9, skips)) == []
    assert skips.to_dict() == {"pile": {"kept": 0, "reasons": {reason: 1}}}


def test_no_room_for_text() -> None:
    with pytest.raises(ConfigError, match="max_tokens of at least 2, not 1"):
        next(full_sentences([[4]], 0, 1))
