"""One example a row, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from kosmos2_jax.data.document_files import encode_png
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packing_converter import PackingFeatureConverter

BLACK = np.zeros((4, 4, 3), np.uint8)
GRAY = np.full((4, 4, 3), 128, np.uint8)


def _convert(rows: list[dict[str, Any]], lengths: Mapping[str, int]) -> list[dict[str, np.ndarray]]:
    shapes = {"targets": [None], "loss_weights": [None], "image_slots": [None]}
    types = {"targets": tf.int32, "loss_weights": tf.float32, "image_slots": tf.int32}
    signature = {name: tf.TensorSpec(shapes[name], types[name]) for name in shapes}
    signature["images"] = tf.TensorSpec([None], tf.string)
    dataset = tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)
    return list(PackingFeatureConverter(4)(dataset, lengths).as_numpy_iterator())


def _row(ids: list[int], weights: list[float], *pictures: np.ndarray) -> dict[str, Any]:
    slots = [-1, -1, 0, 1] + [-1] * (len(ids) - 4) if pictures else [-1] * len(ids)
    images = [encode_png(picture) for picture in pictures]
    return {"targets": ids, "loss_weights": weights, "image_slots": slots, "images": images}


def test_golden_batch() -> None:
    """Id 0 inside a sequence and fractional weights survive; seqio's own converters lose both."""
    row = _row([0, 7, 4, 5, 8, 0, 9, 2], [0, 0, 0, 0, 0, 0.5, 1, 0.25], GRAY)
    (batch,) = _convert([row], feature_lengths(9, images=2))
    golden = {
        "tokens": [0, 7, 4, 5, 8, 0, 9, 1, 1],
        "targets": [7, 4, 5, 8, 0, 9, 2, 1, 1],
        "loss_weights": [0, 0, 0, 0, 0.5, 1, 0.25, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 6, 0, 0],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 0, 0],
        "image_slots": [-1, -1, 0, 1, -1, -1, -1, -1, -1],
    }
    assert {name: batch[name].tolist() for name in golden} == golden
    np.testing.assert_array_equal(batch["images"], [GRAY, BLACK])
    assert {name: value.dtype.name for name, value in batch.items()} == {
        **dict.fromkeys(golden, "int32"),
        "loss_weights": "float32",
        "images": "uint8",
    }


def test_a_row_that_is_just_full() -> None:
    row = _row([0, 7, 4, 5, 8, 2], [0, 0, 0, 0, 0, 1], GRAY)
    (batch,) = _convert([row], feature_lengths(5))
    assert batch["tokens"].tolist() == [0, 7, 4, 5, 8]
    assert batch["targets"].tolist() == [7, 4, 5, 8, 2]
    assert batch["segment_ids"].tolist() == [1] * 5


def test_text_without_pictures() -> None:
    row = _row([0, 9, 2], [0, 1, 1])
    (batch,) = _convert([row], feature_lengths(3, images=1))
    assert batch["image_slots"].tolist() == [-1, -1, -1]
    np.testing.assert_array_equal(batch["images"], [BLACK])


@pytest.mark.parametrize("lengths", [feature_lengths(4), feature_lengths(9, images=0)])
def test_what_does_not_fit_is_an_error_and_never_cut(lengths: dict[str, int]) -> None:
    row = _row([0, 7, 4, 5, 8, 2], [0, 0, 0, 0, 0, 1], GRAY)
    with pytest.raises(tf.errors.InvalidArgumentError):
        _convert([row], lengths)


def test_lengths_must_name_every_feature() -> None:
    with pytest.raises(ValueError, match="images"):
        _convert([], {"targets": 4, "loss_weights": 4, "image_slots": 4})
