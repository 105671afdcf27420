"""Box scores: worked by hand, and against a literal restatement of the protocols."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.evaluation.box_metrics import first_hits, phrase_boxes, rec_accuracy, recall_at_k
from kosmos2_jax.grounding.boxes import Box, iou
from kosmos2_jax.grounding.grounded_text import GroundedText, Span

NAN = float("nan")
WHOLE = Box(0.0, 0.0, 1.0, 1.0)
HALF = Box(0.0, 0.0, 0.5, 1.0)  # IoU with WHOLE exactly 0.5: a hit
LESS = Box(0.0, 0.0, 0.49, 1.0)
REVERSED = Box(1.0, 1.0, 0.0, 0.0)


def test_rec_by_hand():
    assert rec_accuracy([WHOLE], [HALF]) == 1.0
    assert rec_accuracy([WHOLE], [LESS]) == 0.0
    targets = [WHOLE] * 6
    predictions = [WHOLE, None, REVERSED, Box(NAN, 0.0, 1.0, 1.0), Box(0, 0, 1, math.inf), HALF]
    assert rec_accuracy(targets, predictions) == pytest.approx(2 / 6)


def test_half_of_the_sides_is_a_seventh():
    # Two boxes of 10x10 shifted by 5: 25 shared of 175.
    a, b = np.array([0, 0, 10, 10]), np.array([5, 5, 15, 15])
    assert rec_accuracy([Box(*a)], [Box(*b)]) == 0.0
    # Shifted by 3 along one side: 70 of 130, a hit; with one added pixel it would be 88 of 154.
    assert rec_accuracy([Box(0, 0, 10, 10)], [Box(3, 0, 13, 10)]) == 1.0
    # Shifted by 3.5: 65 of 135 = 0.481, a miss; with one added pixel 82.5 of 159.5 = 0.517, a hit.
    assert rec_accuracy([Box(0, 0, 10, 10)], [Box(3.5, 0, 13.5, 10)]) == 0.0


def test_recall_any_box_by_hand():
    left, right = Box(0.0, 0.0, 0.4, 1.0), Box(0.6, 0.0, 1.0, 1.0)
    far = Box(0.45, 0.4, 0.55, 0.6)
    targets = [[left, right], [left, right], [left], [right]]
    predictions = [[right], [far, left], [], [far] * 5 + [right]]
    assert recall_at_k(targets, predictions) == {"r1": 0.25, "r5": 0.5, "r10": 0.75}
    assert recall_at_k(targets, predictions, ks=(2,)) == {"r2": 0.5}


def test_recall_merged_boxes_by_hand():
    # The box around both is the whole; neither half of it nor the gap reaches 0.5 but for HALF.
    left, right = Box(0.0, 0.0, 0.4, 1.0), Box(0.6, 0.0, 1.0, 1.0)
    predictions = [[left, WHOLE], [right], [HALF]]
    targets = [[left, right]] * 3
    assert first_hits(targets, predictions, merge_boxes=True) == [1, math.inf, 0]
    assert first_hits(targets, predictions) == [0, 0, 0]
    assert recall_at_k(targets, predictions, (1, 5), merge_boxes=True) == {"r1": 1 / 3, "r5": 2 / 3}


def test_rec_is_lmms_evals():
    """IoU and hits of 2,000 random pairs in pixels (record_golden.py)."""
    lines = (Path(__file__).parent / "golden" / "rec_boxes.jsonl").read_text().splitlines()
    pairs = [
        (Box(*true), Box(*other), ious, hit) for true, other, ious, hit in map(json.loads, lines)
    ]
    assert len(pairs) == 2000 and 500 < sum(hit for *_, hit in pairs) < 1500
    for true, other, expected, hit in pairs:
        assert iou(true, other) == pytest.approx(expected, abs=1e-12)
        assert rec_accuracy([true], [other]) == hit


@pytest.mark.parametrize("score", [rec_accuracy, recall_at_k])
def test_nothing_to_score_and_unequal_lengths(score):
    with pytest.raises(ValueError, match="no examples"):
        score([], [])
    with pytest.raises(ValueError, match="1 targets but 2 predictions"):
        score([[WHOLE]], [[WHOLE], [WHOLE]])


def test_phrase_without_true_box():
    with pytest.raises(ValueError, match="Phrase 1 has no true box"):
        recall_at_k([[WHOLE], []], [[WHOLE], [WHOLE]])


def test_boxes_of_a_phrase_are_found_by_its_text():
    spans = (
        Span("a dog", 0, 5, (HALF, WHOLE)),
        Span("grass", 9, 14, (LESS,)),
        Span("a dog", 20, 25, (REVERSED,)),
    )
    grounded = GroundedText("a dog on grass near a dog", spans)
    assert phrase_boxes(grounded, " a dog ") == [HALF, WHOLE, REVERSED]
    assert phrase_boxes(grounded, "A dog") == []


def literal_iou(a, b):
    """Flickr30k Entities' IoU in float pixels, written out."""
    if not (a[0] < a[2] and a[1] < a[3] and b[0] < b[2] and b[1] < b[3]):
        return 0.0  # reversed, empty or NaN
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[2], b[2]), min(a[3], b[3])
    if right <= left or bottom <= top:
        return 0.0
    shared = (right - left) * (bottom - top)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)


def literal_recall(targets, predictions, k, merge=False):
    hits = 0
    for true_boxes, boxes in zip(targets, predictions, strict=True):
        if merge:
            corners = np.array(true_boxes)
            true_boxes = [[*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]]
        boxes = list(boxes) or [(0.0, 0.0, 0.0, 0.0)]
        best = max(literal_iou(p, t) for p in boxes[:k] for t in true_boxes)
        hits += best >= 0.5
    return hits / len(targets)


# Eighths: exact sums, so that both ways of computing agree on the very edge of 0.5.
corner = st.integers(-1, 9).map(lambda n: n / 8)
any_box = st.builds(Box, corner, corner, corner, corner)
odd_box = st.one_of(any_box, st.just(Box(NAN, 0.0, 1.0, 1.0)), st.just(Box(0.0, 0.0, 1.0, NAN)))
phrase = st.tuples(st.lists(any_box, min_size=1, max_size=3), st.lists(odd_box, max_size=12))


@settings(max_examples=200, deadline=None)
@given(st.lists(phrase, min_size=1, max_size=8))
def test_equal_to_the_protocols(phrases):
    targets, predictions = map(list, zip(*phrases, strict=True))
    for k, value in zip((1, 5, 10), recall_at_k(targets, predictions).values(), strict=True):
        assert value == literal_recall(targets, predictions, k)
    merged = recall_at_k(targets, predictions, merge_boxes=True)
    for k, value in zip((1, 5, 10), merged.values(), strict=True):
        assert value == literal_recall(targets, predictions, k, merge=True)
    firsts = [boxes[0] if boxes else None for boxes in predictions]
    alone = [[boxes[0]] for boxes in targets]
    expected = literal_recall(alone, predictions, 1)
    assert rec_accuracy([boxes[0] for boxes in targets], firsts) == expected
