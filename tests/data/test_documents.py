"""Documents on disk: what goes in comes out, and damaged bytes say so."""

from __future__ import annotations

import dataclasses

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kosmos2_jax.data.documents import KINDS, Document, from_tf_example, to_tf_example
from kosmos2_jax.data.skips import DataError

DOCUMENT = Document(
    kind="grounded",
    images=(b"\xff\xd8 not really", b""),
    content={"caption": "a dög \U0001f415", "noun_chunks": [[0, 5, 0.1, 0.2, 0.3, 0.4, 0.99]]},
    size=(640, 480),
    source="grit",
    key="00000.tar:000000001",
)

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_JSON = st.recursive(
    _SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.builds(
        Document,
        kind=st.sampled_from(KINDS),
        images=st.lists(st.binary(max_size=20), max_size=4).map(tuple),
        content=st.dictionaries(st.text(), _JSON, max_size=4),
        size=st.none() | st.tuples(st.integers(1, 1 << 31), st.integers(1, 1 << 31)),
        source=st.text(),
        key=st.text(),
    )
)
def test_what_is_stored_is_read_back(document: Document) -> None:
    assert from_tf_example(to_tf_example(document)) == document


def test_a_record_is_an_example_of_two_features() -> None:
    parsed = tf.io.parse_single_example(
        to_tf_example(DOCUMENT),
        {
            "images": tf.io.VarLenFeature(tf.string),
            "document": tf.io.FixedLenFeature([], tf.string),
        },
    )
    assert tuple(parsed["images"].values.numpy()) == DOCUMENT.images
    assert "a dög \U0001f415" in parsed["document"].numpy().decode()


@given(st.binary(max_size=200))
def test_random_bytes_are_no_record(raw: bytes) -> None:
    with pytest.raises(DataError, match="damaged"):
        from_tf_example(raw)


@given(st.data())
def test_damaged_records_say_so_or_are_read(data: st.DataObject) -> None:
    raw = bytearray(to_tf_example(DOCUMENT))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(from_tf_example(bytes(raw)), Document)
    except DataError as error:
        assert "prepare its source again" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "captions"},
        {"content": {"caption": "\ud800"}},
        {"content": {"caption": b"bytes"}},
        {"content": {"noun_chunks": [[0, 1, float("nan"), 0, 1, 1, 1]]}},
    ],
)
def test_what_cannot_be_stored_is_named(change: dict) -> None:
    with pytest.raises(DataError, match="'00000.tar:000000001' of 'grit'"):
        to_tf_example(dataclasses.replace(DOCUMENT, **change))
