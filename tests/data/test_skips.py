"""Counting what is left out, and stopping when it is too much."""

from __future__ import annotations

import json

import pytest

from kosmos2_jax.data.skips import CLIPPED, FILTERED, DataError, NewReasons, Skips
from kosmos2_jax.errors import Kosmos2Error


def _some() -> Skips:
    skips = Skips()
    skips.kept("captions", 94)
    skips.count("captions", "empty caption", 2)
    skips.count("captions", "broken picture")
    skips.count("captions", CLIPPED + "tag taken out", 70)
    skips.count("captions", FILTERED + "small picture", 30)
    skips.kept("text")
    return skips


def test_only_bad_examples_count_as_skipped() -> None:
    skips = _some()
    assert skips.sources() == ["captions", "text"]
    assert skips.num_kept("captions") == 94
    assert skips.num_skipped("captions") == 3
    assert list(skips.reasons("captions")) == [
        "clipped: tag taken out",
        "filtered: small picture",
        "empty caption",
        "broken picture",
    ]


def test_merging_adds_up_and_survives_json() -> None:
    skips = _some()
    skips.merge(Skips.from_dict(json.loads(json.dumps(_some().to_dict()))))
    assert skips.num_kept("captions") == 188
    assert skips.reasons("captions")["broken picture"] == 2
    other = Skips()
    other.kept("new", 0)
    skips.merge(other)
    assert skips.sources() == ["captions", "new", "text"]


def test_report_is_a_table() -> None:
    lines = _some().report().splitlines()
    assert lines[0] == "captions                   94 kept, 3 skipped (3.09%)"
    assert lines[1] == "  clipped: tag taken out   70"
    assert lines[-1].split() == ["text", "1", "kept,", "0", "skipped", "(0.00%)"]
    assert Skips().report() == ""


def test_check_bears_what_is_within_the_limit() -> None:
    _some().check()
    with pytest.raises(
        DataError, match=r"^3\.1% of source 'captions' .*limit of 3\.0%.*picture: 1"
    ):
        _some().check(0.03)
    exact = Skips()
    exact.kept("a", 95)
    exact.count("a", "bad", 5)
    exact.check()
    exact.count("a", "bad")
    with pytest.raises(Kosmos2Error, match="had to be skipped"):
        exact.check()


@pytest.mark.parametrize("reason", ["empty caption", FILTERED + "small picture"])
def test_a_source_that_keeps_nothing_is_an_error(reason: str) -> None:
    skips = Skips()
    skips.count("captions", reason)
    with pytest.raises(DataError, match=f"Nothing of source 'captions'.*{reason}: 1"):
        skips.check(1.0)
    empty = Skips()
    empty.kept("text", 0)
    with pytest.raises(DataError, match="it is empty"):
        empty.check(1.0)


def test_a_reason_is_told_once_when_it_comes_first() -> None:
    skips, reasons = Skips(), NewReasons()
    skips.kept("captions", 5)
    assert reasons.lines(skips) == []
    skips.count("captions", "empty caption", 1200)
    assert reasons.lines(skips) == ["captions: empty caption (1,200 so far)"]
    skips.count("captions", "empty caption")
    skips.count("text", "empty caption")
    assert reasons.lines(skips) == ["text: empty caption (1 so far)"]
    assert NewReasons(skips).lines(skips) == reasons.lines(skips) == []
