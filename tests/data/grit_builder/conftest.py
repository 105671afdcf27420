"""What the detectors of transformers are asked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.data.grit_builder.detectors import Query


@pytest.fixture
def queries() -> list[Query]:
    """A wide and a tall picture of noise; three phrases and one."""
    rng = np.random.default_rng(0)
    wide, tall = (
        Image.fromarray(rng.integers(0, 256, s, np.uint8)) for s in ((40, 64, 3), (64, 48, 3))
    )
    return [
        Query("0", wide, "", ("a red dog", "the cat", "a sofa")),
        Query("1", tall, "", ("two hats",)),
    ]
