"""Means by group by hand; bootstrap intervals beside SciPy's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kosmos2_jax.evaluation.bleu import bleu, bleu_counts
from kosmos2_jax.evaluation.means import Figure, bootstrap_interval, means_by_group
from kosmos2_jax.evaluation.roc import roc_auc


def test_an_example_counts_in_each_of_its_groups():
    groups = [("people",), ("people", "other"), (), ("animals",)]
    means = means_by_group([1.0, 0.0, 1.0, 1.0], groups)
    assert means == {"animals": (1.0, 1), "other": (0.0, 1), "people": (0.5, 2)}
    with pytest.raises(ValueError):
        means_by_group([1.0], [])


def test_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).random(300) < 0.3
    ours = bootstrap_interval(values, resamples=5000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2)
    ).confidence_interval
    # Each end is known to about a twentieth of the interval's width of 0.1.
    assert ours == pytest.approx(theirs, abs=0.006)


def test_interval_is_reproducible_and_narrows_with_more_examples():
    values = [0.0, 1.0] * 50
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    few, many = bootstrap_interval(values), bootstrap_interval(values * 16)
    assert few.low < many.low < 0.5 < many.high < few.high
    assert bootstrap_interval([1.0] * 5) == (1.0, 1.0)


def test_interval_of_a_figure_that_is_no_mean():
    counts = bleu_counts([[["a", "dog"]], [["a", "cat"]]] * 20, [["a", "dog"], ["a", "cow"]] * 20)
    low, high = bootstrap_interval(counts, lambda rows: bleu(rows)[0], resamples=200)
    assert bleu(counts)[0] == pytest.approx(0.75)
    assert low < 0.75 < high


def test_a_figure_is_a_float_that_knows_its_interval():
    figure = Figure([1.0, 0.0, 1.0, 1.0] * 25)
    assert figure == 0.75 and json.dumps([figure]) == "[0.75]"
    assert figure.interval() == bootstrap_interval(figure.scores)
    share = 0.5 * figure
    assert share == 0.375 == figure * 0.5
    assert share.interval() == tuple(end / 2 for end in figure.interval())
    auc = roc_auc([True, False] * 20, [float("inf"), 1.0, 0.5, float("-inf")] * 10)
    assert auc == 0.75
    assert 0.5 < auc.interval().low < 0.75 < auc.interval().high < 1.0
    # Draws of one kind alone have no area.
    assert np.isfinite(roc_auc([1, 0], [2.0, 1.0]).interval()).all()


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [([], 0.95, "no scores"), ([1.0, np.nan], 0.95, "Score 1 is not"), ([1.0], 1.0, "between 0")],
)
def test_intervals_of_nothing(values, confidence, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, confidence=confidence)
