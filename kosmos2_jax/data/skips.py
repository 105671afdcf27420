"""Counts of what was kept, skipped and clipped of each source, by reason.

Bad input never stops a run by itself and never passes silently: whoever meets it counts it here,
and `Skips.check` stops the run when there is too much of it.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from kosmos2_jax.errors import Kosmos2Error

# Reasons that start so were mended, or are a stated choice of the recipe: they do not count
# towards the limit.
CLIPPED = "clipped: "
FILTERED = "filtered: "

# No source is judged by fewer examples: what comes first may be worse than the rest.
MIN_EXAMPLES_TO_STOP = 1000


class DataError(Kosmos2Error):
    """A source that is missing, empty, damaged or mostly unusable."""


class Unusable(Exception):
    """Something that must be left out, and the reason to count it under.

    Whoever goes through examples one by one catches this; it never reaches the user.

    Attributes:
      reason: a short phrase, see `Skips`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Skips:
    """A counter by (source, reason).

    A reason is a short phrase. One that starts with `CLIPPED` says that something was mended and
    the example kept, one that starts with `FILTERED` that the recipe wants it left out; any other
    says that an example was skipped because it is bad.
    """

    def __init__(self) -> None:
        self._reasons: collections.Counter[tuple[str, str]] = collections.Counter()
        self._kept: collections.Counter[str] = collections.Counter()

    def count(self, source: str, reason: str, n: int = 1) -> None:
        """Notes that n things of a source were skipped or clipped for this reason."""
        self._reasons[source, reason] += n

    def kept(self, source: str, n: int = 1) -> None:
        """Notes that n examples of a source were kept; n = 0 announces a source."""
        self._kept[source] += n

    def merge(self, other: Skips) -> None:
        """Adds the counts of another counter to these."""
        self._reasons.update(other._reasons)
        self._kept.update(other._kept)

    def clear(self) -> None:
        """Forgets all counts."""
        self._reasons.clear()
        self._kept.clear()

    def sources(self) -> list[str]:
        """Names of all sources seen, sorted."""
        return sorted({*self._kept, *(source for source, _ in self._reasons)})

    def num_kept(self, source: str) -> int:
        """How many examples of a source were kept."""
        return self._kept[source]

    def num_skipped(self, source: str) -> int:
        """How many examples of a source were bad; none of what was clipped or filtered."""
        return sum(
            n
            for (name, reason), n in self._reasons.items()
            if name == source and not reason.startswith((CLIPPED, FILTERED))
        )

    def reasons(self, source: str) -> dict[str, int]:
        """Counts of a source by reason, the most frequent first."""
        counts = {reason: n for (name, reason), n in self._reasons.items() if name == source}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: `{source: {"kept": n, "reasons": {reason: n}}}`."""
        counts: dict[str, Any] = {
            source: {"kept": self.num_kept(source), "reasons": {}} for source in self.sources()
        }
        ordered = sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
        for (source, reason), n in ordered:
            counts[source]["reasons"][reason] = n
        return counts

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Skips:
        """Reads what `to_dict` gave."""
        skips = cls()
        for source, counts in data.items():
            skips.kept(source, counts["kept"])
            for reason, n in counts["reasons"].items():
                skips.count(source, reason, n)
        return skips

    def report(self) -> str:
        """A small table: for each source what was kept and skipped, and below it the reasons."""
        rows = []
        for source in self.sources():
            kept, skipped = self.num_kept(source), self.num_skipped(source)
            share = skipped / (kept + skipped) if kept + skipped else 0.0
            rows.append((source, f"{kept:,} kept, {skipped:,} skipped ({share:.2%})"))
            rows += [(f"  {reason}", f"{n:,}") for reason, n in self.reasons(source).items()]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def check(self, limit: float = 0.05, least: int = 0) -> None:
        """Stops a run that would train on too little of a source.

        Args:
          limit: the largest share of skipped examples that is borne.
          least: a source is not judged before so many examples of it were kept or skipped; what
            comes first may be worse than the rest.

        Raises:
          DataError: a source kept nothing, or more than `limit` of it was skipped.
        """
        for source in self.sources():
            kept, skipped = self.num_kept(source), self.num_skipped(source)
            if kept + skipped < least:
                continue
            reasons = ", ".join(f"{reason}: {n:,}" for reason, n in self.reasons(source).items())
            if not kept:
                raise DataError(
                    f"Nothing of source {source!r} can be used ({reasons or 'it is empty'}): check "
                    "that its path and format are right."
                )
            share = skipped / (kept + skipped)
            if share > limit:
                raise DataError(
                    f"{share:.1%} of source {source!r} had to be skipped, more than the limit of "
                    f"{limit:.1%} ({reasons}): mend the source or raise the limit."
                )


class NewReasons:
    """Tells of each reason once, as soon as something is counted under it."""

    def __init__(self, told: Skips | None = None) -> None:
        """Begins with what was told before."""
        self._told: set[tuple[str, str]] = set()
        if told is not None:
            self.lines(told)

    def lines(self, skips: Skips) -> list[str]:
        """A line for each reason that was not there before, by source."""
        lines = []
        for source in skips.sources():
            for reason, n in skips.reasons(source).items():
                if (source, reason) not in self._told:
                    self._told.add((source, reason))
                    lines.append(f"{source}: {reason} ({n:,} so far)")
        return lines
