"""Kosmos-2 as a detector: the boxes and scores of its own predictor, for each phrase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.data.grit_builder.detectors import DetectorError, Query
from kosmos2_jax.grounding import prompts
from kosmos2_jax.inference.grit_detector import Kosmos2Config, Kosmos2Detector

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
TWO = (
    "<object><patch_index_0001><patch_index_0018></delimiter_of_multi_objects/>"
    "<patch_index_0033><patch_index_0050></object>"
)


def test_boxes_are_those_of_the_predictor(scripted):
    predictor = scripted(prompts.ground("a star"), TWO)
    expected = predictor.ground(IMAGE, "a star").spans[0]
    query = Query("key", IMAGE, "a star", ("a star", "a <p> star", "a star"))
    other = Query("other", IMAGE, "", ("a <p> star",))
    found, nothing = Kosmos2Detector(predictor).detect([query, other])
    assert found.phrase_ids.tolist() == [0, 0, 2, 2]
    assert found.boxes.tolist() == [list(box) for box in expected.boxes] * 2
    np.testing.assert_allclose(found.scores, expected.scores * 2, rtol=1e-6)
    assert not len(nothing.scores)


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(DetectorError, match="The detector cannot be loaded"):
        Kosmos2Config(str(tmp_path / "none")).open()
