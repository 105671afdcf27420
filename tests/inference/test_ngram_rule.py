"""The rule against repeated n-grams against a literal restatement, both variants of trap T-15."""

from __future__ import annotations

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.inference.decoding import DecodeState, advance, new_rows
from kosmos2_jax.inference.ngram import HUGGING_FACE, OFFICIAL, repeated_ngrams
from kosmos2_jax.inference.sampling import SamplingConfig, row_settings

PLACES, VOCAB, NEW = 10, 5, 4
EOS, PAD = 2, 1

rows_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, VOCAB - 1), min_size=PLACES, max_size=PLACES),
              st.integers(1, PLACES - 1)),
    min_size=2, max_size=2,
)  # fmt: skip


def _blocked(tokens: list[int], size: int) -> set[int]:
    """Every token that would make the last `size` tokens occur a second time."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return {v for v in range(VOCAB) if tuple([*tokens, v][-size:]) in ngrams}


@jax.jit
def _repeated(history: jax.Array, lengths: jax.Array, sizes: jax.Array) -> jax.Array:
    return repeated_ngrams(history, lengths, VOCAB, sizes)


@settings(deadline=None, max_examples=200)
@given(rows_strategy, st.lists(st.integers(0, PLACES + 2), min_size=2, max_size=2))
def test_rule_equals_its_restatement(rows: list[tuple[list[int], int]], sizes: list[int]):
    history = np.array([tokens for tokens, _ in rows], np.int32)
    lengths = np.array([length for _, length in rows], np.int32)
    blocked = np.asarray(_repeated(history, lengths, np.array(sizes, np.int32)))
    for row, ((tokens, length), size) in enumerate(zip(rows, sizes, strict=True)):
        expected = _blocked(tokens[:length], size) if size else set()
        assert set(np.flatnonzero(blocked[row])) == expected


@functools.cache
def _config() -> Kosmos2Config:
    return preset("tiny").replace(grid_size=0, decoder={"vocab_size": VOCAB, "max_length": PLACES})


@jax.jit
def _advance(state: DecodeState, logits: jax.Array) -> DecodeState:
    return advance(_config(), state, logits)


@settings(deadline=None, max_examples=150)
@given(
    rows_strategy,
    st.lists(st.permutations(range(VOCAB)), min_size=2, max_size=2),
    st.lists(st.sampled_from([OFFICIAL, HUGGING_FACE]), min_size=2, max_size=2),
    st.booleans(),
    st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_choice_equals_its_restatement(rows, ranks, variants, is_first, finished):
    history = np.array([tokens for tokens, _ in rows], np.int32)
    lengths = np.array([length for _, length in rows], np.int32)
    configs = [SamplingConfig(NEW, 2, variant, stop_ids=(4,)) for variant in variants]
    state = new_rows(_config(), history, lengths, row_settings(configs))
    state = state._replace(
        prompt_lengths=lengths - (0 if is_first else 1), finished=np.array(finished)
    )
    logits = np.array(ranks, np.float32)
    after = jax.device_get(_advance(state, logits))
    for row, (tokens, length) in enumerate(rows):
        tokens = list(tokens)
        if finished[row]:
            assert after.finished[row] and after.lengths[row] == length
            assert after.history[row].tolist() == tokens and not after.log_probs[row].any()
            continue
        exempt = variants[row] == OFFICIAL and is_first
        banned = {PAD} if exempt else {PAD} | _blocked(tokens[:length], 2)
        allowed = [v for v in range(VOCAB) if v not in banned]
        if not allowed:
            continue  # every token is blocked: any choice is as good
        best = max(allowed, key=lambda v: logits[row, v])
        tokens[length] = best
        assert after.history[row].tolist() == tokens
        assert after.lengths[row] == length + 1
        ended = best == 4 or (best == EOS and not exempt) or length + 1 == PLACES
        assert after.finished[row] == ended
        expected = logits[row, best] - np.log(np.exp(logits[row]).sum())
        np.testing.assert_allclose(after.log_probs[row, length], expected, rtol=1e-5)
