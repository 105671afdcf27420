"""Grounded text as a value: JSON, entities, and spans that do not fit."""

from __future__ import annotations

import json

import pytest

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span, sorted_spans

DOGS = GroundedText(
    "two dogs by a fire",
    (
        Span("two dogs", 0, 8, (Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.2, 0.7, 0.4)), (0.9, 0.8)),
        Span("a fire", 12, 18, (Box(0.0, 0.0, 1.0, 1.0),)),
    ),
    ("a problem.",),
)


def test_json_round_trip() -> None:
    again = GroundedText.from_dict(json.loads(json.dumps(DOGS.to_dict())))
    assert again == DOGS
    assert isinstance(again.spans[0].boxes[0], Box)
    assert hash(again) == hash(DOGS)


def test_json_may_leave_out_scores_and_problems() -> None:
    data = {"text": "a", "spans": [{"text": "a", "start": 0, "end": 1, "boxes": [[0, 0, 1, 1]]}]}
    assert GroundedText.from_dict(data).spans[0].scores == ()
    assert GroundedText.from_dict({"text": "a"}) == GroundedText("a")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"spans": []}, "without the key 'text'"),
        ({"text": "a", "spans": [{"text": "a", "start": 0, "end": 1}]}, "without the key 'boxes'"),
        (
            {"text": "a", "spans": [{"text": "a", "start": 0, "end": 1, "boxes": [[1]]}]},
            "malformed",
        ),
        ({"text": "a", "spans": 3}, "malformed"),
        ([], "malformed"),
    ],
)
def test_malformed_json_is_one_clear_error(data: object, words: str) -> None:
    with pytest.raises(MarkupError, match=words):
        GroundedText.from_dict(data)


def test_entities_are_plain_tuples() -> None:
    assert DOGS.entities()[1] == ("a fire", (12, 18), [(0.0, 0.0, 1.0, 1.0)])
    assert type(DOGS.entities()[1][2][0]) is tuple


def test_spans_are_sorted() -> None:
    turned = GroundedText(DOGS.text, DOGS.spans[::-1])
    assert sorted_spans(turned) == DOGS.spans


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([("two dogs", 0, 8), ("dogs by", 4, 11)], "Two phrases overlap: 'two dogs'"),
        ([("two dogs", 0, 8), ("two dogs", 0, 8)], "Two phrases overlap"),
        ([("two dogs", 0, 8), ("dogs", 4, 8)], "Two phrases overlap"),
        ([("a fires", 12, 19)], "outside the text, which has 18 characters"),
        ([("x", -1, 1)], "outside the text"),
        ([("x", 5, 3)], "outside the text"),
        ([("", 3, 3)], "is empty"),
        ([(" ", 3, 4)], "is empty"),
        ([("two cats", 0, 8)], "does not fit the text, which has 'two dogs' there"),
    ],
)
def test_spans_that_do_not_fit(spans: list[tuple[str, int, int]], words: str) -> None:
    with pytest.raises(MarkupError, match=words):
        sorted_spans(GroundedText(DOGS.text, tuple(Span(*span) for span in spans)))
