"""`kosmos2_jax.ranges`: what is within, and how the rest is told."""

from __future__ import annotations

import math

import pytest

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.ranges import COUNT, SHARE, Range, check_ranges


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (COUNT, (1, 10**9), (0, 0.5, -1, math.nan), "at least 1"),
        (SHARE, (0, 0.3, 1), (-1e-9, 1.001, math.inf), "at least 0 and at most 1"),
        (Range(above=0, most=0.5), (1e-9, 0.5), (0, 0.51, math.nan), "above 0 and at most 0.5"),
        (Range(least=0, below=1), (0, 0.999), (1, -1, math.nan), "at least 0 and below 1"),
        (Range(most=2**32 - 1), (-math.inf, 0), (2**32,), "at most 4,294,967,295"),
    ],
)
def test_what_is_outside_is_told_with_the_whole_range(allowed, inside, outside, words):
    for value in inside:
        check_ranges({"size": allowed}, {"size": value, "other": None})
    for value in outside:
        with pytest.raises(ConfigError) as error:
            check_ranges({"size": allowed}, {"size": value, "other": None}, "data.")
        assert str(error.value) == f"data.size must be {words}, not {value}"
