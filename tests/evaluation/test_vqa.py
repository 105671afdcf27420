"""VQA accuracy: the challenge server's answers, and its protocol restated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.evaluation.vqa import answer_score, normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        # What the challenge's own processor gives, run once on these.
        ("A red apple.", "red apple"),
        ("two", "2"),
        ("isnt", "isn't"),
        ("1,000", "1000"),
        ("on the table, left", "on table left"),
        ("dont know", "don't know"),
        ("3.5", "3.5"),
        ("the dog's", "dog 's"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("well - done", "well done"),
        ("(yes)", "yes"),
        ("U.S.A.", "usa"),
        ("v.2", "v.2"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("hes here", "he's here"),
        ("im fine", "im fine"),
        (" \n yes\tno \n", "yes no"),
        ("The the a an", ""),
        ("?", ""),
    ],
)
def test_normalized_answers(answer, normalized):
    assert normalize_answer(answer) == normalized


def test_answers_are_normalized_as_in_lmms_eval():
    """What its processor gave on 2,000 random answers (record_golden.py)."""
    lines = (Path(__file__).parent / "golden" / "vqa_answers.jsonl").read_text().splitlines()
    assert len(lines) == 2000
    for answer, normalized in map(json.loads, lines):
        assert normalize_answer(answer) == normalized, answer


def test_one_true_answer_is_right_or_wrong():
    assert answer_score(["Yes"], " yes. ") == 1.0
    assert answer_score(["yes"], "yes it is") == 0.0
    assert vqa_accuracy([["red"], ["two"], ["circle"]], ["Red", "2", "square"]) == 2 / 3


@pytest.mark.parametrize(
    ("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_true_answers_by_hand(matches, score):
    # With n matches, n times n - 1 others match, and 10 - n times n do.
    answers = ["cat"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert answer_score(answers, "a cat") == pytest.approx(score)


def literal_accuracy(annotated, prediction):
    """The challenge's loop over people, one left out at a time."""
    annotated = [normalize_answer(answer) for answer in annotated]
    scores = []
    for person in range(len(annotated)):
        others = [answer for other, answer in enumerate(annotated) if other != person]
        matching = [answer for answer in others if answer == normalize_answer(prediction)]
        scores.append(min(1, float(len(matching)) / 3))
    return sum(scores) / len(scores)


word = st.sampled_from(("yes", "Yes.", "no", "two", "2", "the dog", "dog", "a-b", "a b", ""))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(word, min_size=10, max_size=10), word), min_size=1, max_size=5))
def test_equal_to_the_protocol(questions):
    targets, predictions = map(list, zip(*questions, strict=True))
    expected = sum(literal_accuracy(*question) for question in questions) / len(questions)
    assert vqa_accuracy(targets, predictions) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_normalizing_leaves_no_articles_commas_or_wide_spaces(text):
    words = normalize_answer(text)
    assert words == " ".join(words.split())
    assert not {"a", "an", "the"} & set(words.split())
    assert "," not in words and "?" not in words


def test_nothing_to_score_and_odd_numbers_of_answers():
    with pytest.raises(ValueError, match="no questions"):
        vqa_accuracy([], [])
    with pytest.raises(ValueError, match="1 targets but 0 predictions"):
        vqa_accuracy([["yes"]], [])
    for answers in ([], ["a", "b"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="1 answer or at least 4"):
            answer_score(answers, "a")
