"""The rule against repeated n-grams against a literal restatement, both variants of trap T-15."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.inference.decoding import DecodeState, GenerationConfig, choose
from kosmos2_jax.inference.ngram import HUGGING_FACE, OFFICIAL, repeated_ngrams

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


@functools.partial(jax.jit, static_argnums=2)
def _repeated(history: jax.Array, lengths: jax.Array, size: int) -> jax.Array:
    return repeated_ngrams(history, lengths, VOCAB, size)


@settings(deadline=None, max_examples=200)
@given(rows_strategy, st.integers(1, 4))
def test_rule_equals_its_restatement(rows: list[tuple[list[int], int]], size: int):
    history = np.array([tokens for tokens, _ in rows], np.int32)
    lengths = np.array([length for _, length in rows], np.int32)
    blocked = np.asarray(_repeated(history, lengths, size))
    for row, (tokens, length) in enumerate(rows):
        assert set(np.flatnonzero(blocked[row])) == _blocked(tokens[:length], size)


def test_rule_where_the_buffer_is_shorter_than_the_ngram():
    blocked = repeated_ngrams(jnp.zeros((1, 2), jnp.int32), jnp.array([2]), VOCAB, 3)
    assert not blocked.any()


@functools.cache
def _config() -> Kosmos2Config:
    return preset("tiny").replace(decoder={"vocab_size": VOCAB + 0, "max_length": PLACES})


@functools.partial(jax.jit, static_argnums=(0, 4))
def _choose(generation, state, logits, _, is_first):  # noqa: ANN001, ANN202
    return choose(_config(), generation, state, logits, is_first=is_first)


@settings(deadline=None, max_examples=150)
@given(
    rows_strategy,
    st.lists(st.permutations(range(VOCAB)), min_size=2, max_size=2),
    st.sampled_from([OFFICIAL, HUGGING_FACE]),
    st.booleans(),
    st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_choice_equals_its_restatement(rows, ranks, variant, is_first, finished):
    generation = GenerationConfig(NEW, 2, variant, stop_ids=(4,))
    state = DecodeState(
        step=jnp.int32(0),
        history=np.array([tokens for tokens, _ in rows], np.int32),
        lengths=np.array([length for _, length in rows], np.int32),
        log_probs=jnp.zeros((2, NEW)),
        finished=np.array(finished),
        cache=(),
    )
    logits = np.array(ranks, np.float32)
    after = jax.device_get(_choose(generation, state, logits, None, is_first))
    for row, (tokens, length) in enumerate(rows):
        tokens = list(tokens)
        if finished[row]:
            assert after.finished[row] and after.lengths[row] == length
            assert after.history[row].tolist() == tokens and after.log_probs[row, 0] == 0
            continue
        exempt = variant == OFFICIAL and is_first
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
        np.testing.assert_allclose(after.log_probs[row, 0], expected, rtol=1e-5)
