"""Cut-out regions and COCO annotations."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.errors import BoxError
from kosmos2_jax.grounding import Box, GroundedText, Span
from kosmos2_jax.inference.results import coco_annotations, crop

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)


def test_a_crop_has_all_pixels_that_the_box_touches():
    part = np.asarray(crop(PIXELS, (0.25, 0.1, 0.51, 0.55)))
    np.testing.assert_array_equal(part, PIXELS[2:11, 10:21])
    assert crop(Image.fromarray(PIXELS), (0.0, 0.0, 1.0, 1.0)).size == (40, 20)
    assert crop(PIXELS, (0.5, 0.5, 0.5001, 0.5001)).size == (1, 1)
    with pytest.raises(BoxError, match="reversed"):
        crop(PIXELS, (0.5, 0.0, 0.1, 1.0))


def test_annotations_are_pixels_with_phrases():
    spans = (
        Span("a dog", 0, 5, (Box(0.25, 0.5, 0.5, 1.0), Box(0.5, 0.5, 0.25, 1.0)), (0.9, 0.8)),
        Span("a cat", 10, 15, (Box(0.0, 0.0, 1.0, 1.0),)),
    )
    found = coco_annotations(GroundedText("a dog and a cat", spans), 40, 20, 7, first_id=3)
    assert found == [
        {
            "id": 3, "image_id": 7, "category_id": 1, "bbox": [10.0, 10.0, 10.0, 10.0],
            "area": 100.0, "iscrowd": 0, "phrase": "a dog", "score": 0.9,
        },
        {
            "id": 4, "image_id": 7, "category_id": 1, "bbox": [0.0, 0.0, 40.0, 20.0],
            "area": 800.0, "iscrowd": 0, "phrase": "a cat",
        },
    ]  # fmt: skip
