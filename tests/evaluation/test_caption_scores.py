"""Caption scores beside pycocoevalcap's on the same tokens, and a score worked by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from kosmos2_jax.evaluation import coco_java
from kosmos2_jax.evaluation.bleu import bleu, bleu_counts
from kosmos2_jax.evaluation.captions import score_captions
from kosmos2_jax.evaluation.cider import cider_d
from kosmos2_jax.evaluation.rouge import rouge_l

WORDS = "a the man dog cat red blue sits runs on in grass street with ball and two near".split()

needs_java = pytest.mark.skipif(not coco_java.is_available(), reason="no Java or pycocoevalcap")


@pytest.fixture(scope="module")
def random_captions() -> tuple[list[list[list[str]]], list[list[str]]]:
    """1,000 pictures with 1 to 5 references each, and a caption that is often near one of them."""
    rng = random.Random(0)
    references, predictions = [], []
    for _ in range(1000):
        group = [rng.choices(WORDS, k=rng.randint(1, 14)) for _ in range(rng.randint(1, 5))]
        written = [word for word in rng.choice(group) if rng.random() < 0.8]
        written += rng.choices(WORDS, k=rng.randint(0, 4))
        references.append(group)
        predictions.append(written or ["a"])
    return references, predictions


def as_coco(references, predictions):
    """pycocoevalcap's dictionaries of joined tokens."""
    true = {n: [" ".join(tokens) for tokens in group] for n, group in enumerate(references)}
    return true, {n: [" ".join(tokens)] for n, tokens in enumerate(predictions)}


def test_cider_is_pycocoevalcaps(random_captions):
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    mean, each = cider.Cider().compute_score(*as_coco(*random_captions))
    ours = cider_d(*random_captions)
    np.testing.assert_allclose(ours, each, rtol=0, atol=1e-9)
    assert np.mean(ours) == pytest.approx(mean, abs=1e-9)


def test_bleu_is_pycocoevalcaps(random_captions):
    package = pytest.importorskip("pycocoevalcap.bleu.bleu")
    counts = bleu_counts(*random_captions)
    for part in (slice(None), slice(0, 1), slice(10, 300)):
        some = [captions[part] for captions in random_captions]
        expected, each = package.Bleu(4).compute_score(*as_coco(*some), verbose=0)
        np.testing.assert_allclose(bleu(counts[part]), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(bleu(counts[10:11]), [n[0] for n in each], rtol=0, atol=1e-9)


def test_rouge_is_pycocoevalcaps(random_captions):
    package = pytest.importorskip("pycocoevalcap.rouge.rouge")
    _, each = package.Rouge().compute_score(*as_coco(*random_captions))
    np.testing.assert_allclose(rouge_l(*random_captions), each, rtol=0, atol=1e-9)


@needs_java
def test_official_scores_are_pycocoevalcaps(random_captions):
    package = pytest.importorskip("pycocoevalcap.meteor.meteor")
    references, predictions = ([*captions[:30]] for captions in random_captions)
    references.append([["a", "dog", "runs"]])
    predictions.append([])
    true, written = as_coco(references, predictions)
    scores = score_captions(
        list(true.values()), [each[0] for each in written.values()], official=True
    )
    expected, each = package.Meteor().compute_score(true, written)
    assert scores.meteor == (expected, each)
    assert scores.num_empty == 1 and each[-1] == 0.0
    ours = score_captions(list(true.values()), [each[0] for each in written.values()])
    assert ours.meteor is None
    assert ours.figures() == {n: v for n, v in scores.figures().items() if n != "meteor"}


def test_cider_by_hand():
    # Two pictures with a word each that the other has not, so that every n-gram weighs log 2.
    assert cider_d([[["red"]], [["blue"]]], [["red"], ["red"]]) == pytest.approx([2.5, 0.0])
    # A second reference that shares nothing halves it; a length of one bigram more has its price.
    twice = cider_d([[["red"], ["green"]], [["blue"]]], [["red"], ["blue", "blue"]])
    penalty = math.exp(-1 / 72)
    # Clipped: of weights 2 log 2 and log 2 the lesser counts, over norms 2 log 2 and log 2.
    assert twice == pytest.approx([1.25, 2.5 / 2 * penalty])


def test_empty_captions_score_nothing():
    scores = score_captions([["A dog."], ["A cat."]], ["", "..."])
    assert scores.num_empty == 2
    assert scores.cider == [0.0, 0.0] and scores.rouge_l == [0.0, 0.0]
    assert scores.figures()["bleu4"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("score", [cider_d, bleu_counts, rouge_l, score_captions])
def test_captions_that_cannot_be_scored(score):
    with pytest.raises(ValueError, match="no captions"):
        score([], [])
    with pytest.raises(ValueError, match="1 pictures but 2 captions"):
        score([["a"]], ["a", "b"])
    with pytest.raises(ValueError, match="Picture 1 has no reference"):
        score([["a"], []], ["a", "b"])


def test_word_where_java_is_missing(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    assert not coco_java.is_available()
    with pytest.raises(coco_java.JavaError, match="METEOR and COCO's tokenizer need Java"):
        score_captions([["a dog"]], ["a dog"], official=True)
