"""Ranges of settings: checked in one way, and told in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kosmos2_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that a setting may be; None for a bound that it does not have.

    Attributes:
      least: the smallest of them.
      above: they are larger than this.
      most: the largest of them.
      below: they are smaller than this.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """NaN is in no range that has a bound."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """As "at least 0 and below 1"."""
        bounds = {
            "at least": self.least, "above": self.above, "at most": self.most, "below": self.below
        }  # fmt: skip
        return " and ".join(f"{word} {n:,}" for word, n in bounds.items() if n is not None)


COUNT = Range(least=1)
SHARE = Range(least=0, most=1)


def check_ranges(ranges: Mapping[str, Range], values: Mapping[str, Any], prefix: str = "") -> None:
    """Holds settings to their ranges.

    Args:
      ranges: by name of the setting.
      values: by name; more of them than have ranges, as `vars()` of a dataclass gives them.
      prefix: what stands before the name where a user sets it, as "data.".

    Raises:
      ConfigError: the first that is outside, and what it must be.
    """
    for name, allowed in ranges.items():
        if values[name] not in allowed:
            raise ConfigError(f"{prefix}{name} must be {allowed}, not {values[name]}")
