"""ROC-AUC beside SciPy's, EM and F1 beside a literal restatement, choices worked by hand."""

from __future__ import annotations

import math
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.evaluation.candidates import best_candidate, candidate_score, choice_accuracy
from kosmos2_jax.evaluation.extraction import exact_match, f1
from kosmos2_jax.evaluation.roc import roc_auc


def test_roc_auc_by_hand():
    assert roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert roc_auc([0, 1], [1.0, 1.0]) == 0.5
    assert roc_auc([True, False], [-math.inf, math.inf]) == 0.0


def test_roc_auc_is_the_rank_sum():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size in (2, 10, 500):
        labels = np.arange(size) % 2
        scores = rng.normal(size=size).round(1) + 0.5 * labels
        wins = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
        expected = wins / (labels.sum() * (1 - labels).sum())
        assert roc_auc(labels, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], "both true and false"),
        ([0, 1], [0.1], "2 labels but 1 scores"),
        ([0, 1], [0.1, math.nan], "example 1 is NaN"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
    ],
)
def test_roc_auc_of_nothing(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(labels, scores)


words = st.lists(
    st.sampled_from(("a", "The", "penguin", "Books,", "Ltd.", "books", "an", "$5", "(x)", "--")),
    max_size=6,
).map(" ".join)


def literal_squad(answer, prediction):
    """EM and F1 as SQuAD 2.0's evaluation script describes them, step by step."""
    pair = []
    for text in (answer, prediction):
        text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        pair.append([word for word in text.split() if word not in ("a", "an", "the")])
    true, written = pair
    if not true or not written:
        return float(true == written), float(true == written)
    same = sum(min(true.count(word), written.count(word)) for word in set(true))
    if not same:
        return 0.0, 0.0
    precision, recall = same / len(written), same / len(true)
    return float(true == written), 2 * precision * recall / (precision + recall)


@settings(max_examples=200, deadline=None)
@given(words, words)
def test_em_and_f1_are_squads(answer, prediction):
    em, expected = literal_squad(answer, prediction)
    assert exact_match([answer], prediction) == em
    assert f1([answer], prediction) == pytest.approx(expected, abs=1e-12)


def test_em_and_f1_by_hand():
    answers = ["Penguin Books Ltd.", "Penguin"]
    assert exact_match(answers, "the penguin") == 1.0
    assert exact_match(answers, "penguin books") == 0.0
    # 2 of 2 written words, 2 of 3 true ones.
    assert f1(answers, "penguin books") == pytest.approx(0.8)
    assert f1(["the"], "a") == 1.0 and f1(["x"], "") == 0.0
    with pytest.raises(ValueError, match="no true answer"):
        f1([], "x")


def test_choices_with_and_without_length_normalization():
    long, short = [-0.5, -0.5, -0.5], [-1.0]
    assert candidate_score(long) == -0.5
    assert best_candidate([long, short]) == 0
    assert best_candidate([long, short], "sum") == 1
    assert best_candidate([[-1.0], [-1.0]]) == 0
    assert best_candidate([[-math.inf, -0.1], [-9.0]]) == 1
    assert choice_accuracy([0, 1, 2], [0, 1, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "no candidates"),
        ([[-1.0], []], "without tokens"),
        ([[math.nan]], "Token 0 has the log probability nan"),
        ([[-0.1, 0.1]], "Token 1 has the log probability 0.1"),
    ],
)
def test_choices_that_cannot_be_made(candidates, message):
    with pytest.raises(ValueError, match=message):
        best_candidate(candidates)


def test_choices_of_unknown_kinds():
    with pytest.raises(ValueError, match="no normalization 'bytes'"):
        candidate_score([-1.0], "bytes")
    with pytest.raises(ValueError, match="no examples"):
        choice_accuracy([], [])
    with pytest.raises(ValueError, match="1 targets but 0 choices"):
        choice_accuracy([1], [])
