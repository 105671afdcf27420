"""Scores against transformers' Kosmos-2 with every tensor random, in float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from kosmos2_jax.interop.layout import stack_layers

TOLERANCE = 1e-4  # absolute; never to be relaxed
PICTURE = 0  # in a row's layout

ONE_PICTURE = [(PICTURE, 9)]
RAGGED = [(PICTURE, 3), (4, PICTURE, 12), (1, PICTURE), (PICTURE, 7)]
SEVERAL_PICTURES = [(PICTURE, 4, PICTURE, 2), (2, PICTURE, PICTURE, 1, PICTURE, 5), (PICTURE, 6)]
TEXT_ALONE = [(11,), (3,), (17,)]
MIXED = [(8,), (PICTURE, 5)]


def assert_close(found: np.ndarray, batch: Any, rows: list[np.ndarray]) -> None:
    """Compares real tokens; what stands on padding has no meaning in either model."""
    for row, expected in enumerate(rows):
        assert expected.std() > 0.5, "scores are too flat to tell anything"
        np.testing.assert_allclose(
            found[row, : batch.lengths[row]], expected, rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_ragged_batch_equals_unpadded_rows(
    shape, attention, make_reference, make_batch, our_logits, reference_logits
):
    reference = make_reference(shape, attention=attention)
    batch = make_batch(reference.config, RAGGED)
    rows = [reference_logits(reference.model, batch, [row])[0] for row in range(len(RAGGED))]
    assert_close(our_logits(reference.config, reference.params, batch), batch, rows)


@pytest.mark.parametrize(
    "layouts",
    [ONE_PICTURE, RAGGED, SEVERAL_PICTURES, TEXT_ALONE],
    ids=["one_picture", "ragged", "several_pictures", "text_alone"],
)
def test_padded_batch_equals_padded_batch(
    layouts, tiny_reference, make_batch, our_logits, reference_logits
):
    batch = make_batch(tiny_reference.config, layouts, seed=1)
    rows = reference_logits(tiny_reference.model, batch, range(len(layouts)))
    assert_close(our_logits(tiny_reference.config, tiny_reference.params, batch), batch, rows)


@pytest.mark.parametrize("layouts", [SEVERAL_PICTURES, MIXED], ids=["several", "mixed"])
def test_numbers_of_pictures_may_differ_in_a_batch(
    layouts, tiny_reference, make_batch, our_logits, reference_logits
):
    batch = make_batch(tiny_reference.config, layouts, seed=2)
    rows = [reference_logits(tiny_reference.model, batch, [i])[0] for i in range(len(layouts))]
    assert_close(our_logits(tiny_reference.config, tiny_reference.params, batch), batch, rows)


def test_long_text_passes_the_configured_length(
    tiny_reference, make_batch, our_logits, reference_logits
):
    """Sinusoids have no last row: 300 tokens in a model made for 128."""
    batch = make_batch(tiny_reference.config, [(PICTURE, 300)])
    rows = reference_logits(tiny_reference.model, batch, [0])
    assert_close(our_logits(tiny_reference.config, tiny_reference.params, batch), batch, rows)


@pytest.mark.parametrize("layouts", [RAGGED, TEXT_ALONE], ids=["ragged", "text_alone"])
def test_scanned_layers_equal_the_reference(
    layouts, tiny_reference, make_batch, our_logits, reference_logits
):
    config = tiny_reference.config.replace(scan_layers=True)
    batch = make_batch(config, layouts)
    rows = [reference_logits(tiny_reference.model, batch, [i])[0] for i in range(len(layouts))]
    params = stack_layers(tiny_reference.params, config)
    assert_close(our_logits(config, params, batch), batch, rows)


def test_what_stands_in_a_picture_slot_has_no_influence(tiny_reference, make_batch, our_logits):
    batch = make_batch(tiny_reference.config, ONE_PICTURE)
    before = our_logits(tiny_reference.config, tiny_reference.params, batch)
    batch.tokens[batch.image_slots >= 0] = 1
    after = our_logits(tiny_reference.config, tiny_reference.params, batch)
    np.testing.assert_array_equal(after, before)


def test_packed_examples_do_not_see_each_other(tiny_reference, make_batch, our_logits):
    """Two examples in one row, with positions that start anew, equal the two on their own."""
    config = tiny_reference.config
    alone = make_batch(config, [(PICTURE, 5), (3, PICTURE, 4)])
    first, second = alone.lengths

    def packed(values: np.ndarray, shift: int = 0) -> np.ndarray:
        tail = values[1, :second]
        return np.concatenate([values[0, :first], np.where(tail >= 0, tail + shift, tail)])[None]

    together = dataclasses.replace(
        alone,
        tokens=packed(alone.tokens),
        positions=packed(alone.positions),
        segment_ids=packed(alone.segment_ids, 1),
        image_slots=packed(alone.image_slots, config.resampler.num_latents),
        images=alone.images.reshape(1, 2, *alone.images.shape[2:]),
    )
    expected = our_logits(config, tiny_reference.params, alone)
    found = our_logits(config, tiny_reference.params, together)[0]
    np.testing.assert_allclose(found[:first], expected[0, :first], atol=2e-5, rtol=0)
    np.testing.assert_allclose(found[first:], expected[1, :second], atol=2e-5, rtol=0)
