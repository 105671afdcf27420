"""Rules of sampling against transformers' processors; frequencies against probabilities."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation import logits_process

from kosmos2_jax.config import preset
from kosmos2_jax.inference.sampling import (
    SamplingConfig,
    allowed_logits,
    choose_tokens,
    row_settings,
)

CONFIG = preset("tiny").replace(grid_size=0, decoder={"vocab_size": 40})
CONFIGS = (
    SamplingConfig(1, 0, temperature=0.7, top_k=5),
    SamplingConfig(1, 0, temperature=1.5, top_p=0.6),
    SamplingConfig(1, 2, "hugging_face", temperature=1.0, top_k=9, top_p=0.8,
                   repetition_penalty=1.7),
    SamplingConfig(1, 3, "hugging_face", temperature=1.0, repetition_penalty=0.8),
)  # fmt: skip


@functools.partial(jax.jit, static_argnums=4)
def _choose(logits, history, lengths, settings, count: int):  # noqa: ANN001, ANN202
    written, left = np.zeros(count, np.int32), np.ones(count, np.int32)
    return choose_tokens(logits, history, lengths, written, left, settings, CONFIG)


def _theirs(config: SamplingConfig, history: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Probabilities of the next token by transformers."""
    rules = [logits_process.RepetitionPenaltyLogitsProcessor(config.repetition_penalty)]
    if config.no_repeat_ngram_size:
        rules.append(logits_process.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    rules.append(logits_process.SuppressTokensLogitsProcessor([1]))
    rules.append(logits_process.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        rules.append(logits_process.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        rules.append(logits_process.TopPLogitsWarper(config.top_p))
    ids, scores = torch.from_numpy(history).long()[None], torch.from_numpy(logits)[None]
    for rule in rules:
        scores = rule(ids, scores.clone())
    return scores[0].double().softmax(-1).numpy()


def test_frequencies_are_the_probabilities_of_transformers():
    rng = np.random.default_rng(0)
    draws = 4000
    for config in CONFIGS:
        logits = rng.normal(size=40).astype(np.float32) * 2
        history = rng.integers(3, 8, 12)
        shares = _theirs(config, history, logits)
        settings = row_settings([config] * draws)._replace(seed=np.arange(draws, dtype=np.uint32))
        rows = np.pad(np.tile(history, (draws, 1)), ((0, 0), (0, 3))).astype(np.int32)
        found = _choose(
            np.tile(logits, (draws, 1)), rows, np.full(draws, 12, np.int32), settings, draws
        )
        counts = np.bincount(found.tokens, minlength=40)
        assert not counts[shares == 0].any()
        likely = shares * draws >= 5
        assert likely.sum() > 2
        expected = np.append(shares[likely], shares[~likely].sum()) * draws
        observed = np.append(counts[likely], counts[~likely].sum())
        kept = expected > 0
        assert stats.chisquare(observed[kept], expected[kept]).pvalue > 1e-3
        # Log-probabilities are the model's own, no rule counted.
        expected = logits - np.logaddexp.reduce(logits.astype(np.float64))
        np.testing.assert_allclose(found.log_probs, expected[found.tokens], atol=1e-5)


def test_seed_output_and_step_decide_alone():
    logits = np.tile(np.random.default_rng(1).normal(size=40).astype(np.float32), (6, 1))
    configs = [SamplingConfig(1, 0, temperature=3.0, seed=seed) for seed in (1, 2, 1, 2, 1, 9)]
    settings = row_settings(configs, [0, 0, 0, 0, 1, 0])
    history, lengths = np.zeros((6, 15), np.int32), np.full(6, 3, np.int32)
    tokens = np.asarray(_choose(logits, history, lengths, settings, 6).tokens)
    assert tokens[0] == tokens[2] and tokens[1] == tokens[3]
    many = [
        _choose(logits, history, lengths, settings._replace(seed=settings.seed + n), 6).tokens
        for n in range(0, 200, 10)
    ]
    assert len({tuple(np.asarray(row)[[0, 4]]) for row in many}) > 10


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_rows_are_not_touched_by_sampled_ones(penalty: float):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 40)).astype(np.float32)
    greedy = SamplingConfig(1, 2, "hugging_face", repetition_penalty=penalty)
    history = rng.integers(3, 8, (2, 15)).astype(np.int32)
    lengths = np.array([12, 9], np.int32)
    alone = _choose(logits, history, lengths, row_settings([greedy] * 2), 2)
    mixed = _choose(logits, history, lengths, row_settings([greedy, CONFIGS[2]]), 2)
    assert alone.tokens[0] == mixed.tokens[0] and alone.log_probs[0] == mixed.log_probs[0]
    allowed = allowed_logits(
        logits, history, lengths, np.zeros(2, np.int32), np.ones(2, np.int32),
        row_settings([greedy] * 2),
    )  # fmt: skip
    assert np.isneginf(np.asarray(allowed)[:, 1]).all()
