"""The rows of the engine on the device: prompts come in, tokens are written, rows become free.

All programs have static shapes: a fixed number of rows, and a few lengths of the cache, to the
next of which it grows when a row needs it.

Letters: R rows, G prompts that are read together, L their padded length, T places of the cache,
N pictures a prompt, K given vectors a prompt, E hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.cache import cache_slots, insert_row, resize_cache
from kosmos2_jax.inference.decoding import DecodeState, advance, new_rows, prefill, write_one
from kosmos2_jax.inference.grammar import Grammar, GrammarState
from kosmos2_jax.inference.prompt_batch import Prompt, batch_prompts
from kosmos2_jax.inference.sampling import RowSettings, SamplingConfig, row_settings
from kosmos2_jax.models.decoder import Cache, empty_cache


class Prefilled(NamedTuple):
    """Prompts that were read."""

    logits: Float[Array, "G V"]
    cache: Cache


class Written(NamedTuple):
    """What the rows hold, on the host."""

    history: Int[np.ndarray, "R T"]
    lengths: Int[np.ndarray, " R"]
    log_probs: Float[np.ndarray, "R T"]
    nearby_log_probs: Float[np.ndarray, "R T"]
    finished: Bool[np.ndarray, " R"]


class Rows:
    """A fixed number of rows that share a cache and a compiled step."""

    def __init__(
        self,
        config: Kosmos2Config,
        params: Any,
        count: int,
        cache_lengths: Sequence[int],
        steps: int,
        grammar: Grammar | None,
    ) -> None:
        """Makes empty rows.

        Args:
          config: of the model.
          params: of the model.
          count: R.
          cache_lengths: possible T, ascending; the last holds the longest sequence.
          steps: tokens that `write` adds to each row.
          grammar: of the vocabulary, if it has one.
        """
        self._config, self._params, self._count = config, params, count
        self._cache_lengths, self._steps = tuple(cache_lengths), steps
        self._grammar = None if grammar is None else jax.device_put(grammar)
        self._state = self._empty()

    def prefill(self, prompts: Sequence[Prompt]) -> Prefilled:
        """Reads prompts, all at once."""
        batch = batch_prompts(prompts, max_length=self._config.decoder.max_length - 1)
        return _prefill(self._config, self._params, *batch)

    def admit(
        self,
        row: int,
        prompt: Prompt,
        prefilled: Prefilled,
        number: int,
        sampling: SamplingConfig,
        output: int,
        grammar_state: GrammarState | None,
    ) -> None:
        """Puts a prompt that was read into a free row and chooses its first token.

        Args:
          row: which row.
          prompt: for it.
          prefilled: of this prompt and perhaps others.
          number: of this prompt among those.
          sampling: how to write on.
          output: which output of its prompt the row is.
          grammar_state: where the prompt leaves off, if there is a grammar.
        """
        length = len(prompt.ids)
        self.require(max(cache_slots(prefilled.cache), length + 1))
        history = np.full((1, self._state.history.shape[1]), Kosmos2Vocabulary.pad_id, np.int32)
        history[0, :length] = prompt.ids
        self._state = _admit(
            self._config,
            self._state,
            np.int32(row),
            prefilled,
            np.int32(number),
            history,
            np.array([length], np.int32),
            row_settings([sampling], [output]),
            grammar_state,
            self._grammar,
        )

    def write(self) -> None:
        """Adds some tokens to every unfinished row."""
        self._state = _write(self._config, self._steps, self._params, self._state, self._grammar)

    def read(self) -> Written:
        """What is written so far; waits for it."""
        return Written(*jax.device_get([getattr(self._state, name) for name in Written._fields]))

    def finish(self, rows: Sequence[int]) -> None:
        """Ends rows early."""
        mask = np.zeros(self._count, bool)
        mask[list(rows)] = True
        self._state = self._state._replace(finished=self._state.finished | mask)

    def require(self, places: int) -> None:
        """Makes the cache grow until rows of so many tokens can get some more."""
        wanted = min(places + self._steps, self._cache_lengths[-1])
        length = next(length for length in self._cache_lengths if length >= wanted)
        if length > self._state.history.shape[1]:
            self._state = _resize(self._state, length)

    def clear(self) -> None:
        """Shrinks the cache to its shortest length; what rows hold is lost."""
        if self._state.history.shape[1] > self._cache_lengths[0]:
            self._state = self._empty()

    def _empty(self) -> DecodeState:
        return _empty(self._config, self._count, self._cache_lengths[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(config: Kosmos2Config, count: int, places: int) -> DecodeState:
    cache = empty_cache(
        config.decoder, count, places, scan_layers=config.scan_layers, dtype=config.dtype
    )
    state = new_rows(
        config,
        jnp.full((count, places), Kosmos2Vocabulary.pad_id, jnp.int32),
        jnp.ones(count, jnp.int32),
        row_settings([SamplingConfig()] * count),
        cache=cache,
    )
    return state._replace(finished=jnp.ones(count, bool))


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
    config: Kosmos2Config,
    params: Any,
    tokens: Int[Array, "G L"],
    lengths: Int[Array, " G"],
    image_slots: Int[Array, "G L"],
    images: Array | None,
    embeddings: Float[Array, "G K E"] | None,
) -> Prefilled:
    features = (tokens, lengths, image_slots, images, embeddings)
    return Prefilled(*prefill(config, params, *features, cache_length=tokens.shape[1]))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _admit(
    config: Kosmos2Config,
    state: DecodeState,
    row: Int[Array, ""],
    prefilled: Prefilled,
    number: Int[Array, ""],
    history: Int[Array, "1 T"],
    length: Int[Array, " 1"],
    settings: RowSettings,
    grammar_state: GrammarState | None,
    grammar: Grammar | None,
) -> DecodeState:
    new = new_rows(config, history, length, settings, grammar_state)
    logits = jax.lax.dynamic_slice_in_dim(prefilled.logits, number, 1)
    new = advance(config, new, logits, grammar)
    cache = insert_row(state.cache, row, prefilled.cache, number)
    merged = jax.tree.map(
        lambda old, values: old.at[row].set(values[0]), state._replace(cache=()), new
    )
    return merged._replace(cache=cache)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _write(
    config: Kosmos2Config, steps: int, params: Any, state: DecodeState, grammar: Grammar | None
) -> DecodeState:
    def going(carry: tuple[Array, DecodeState]) -> Bool[Array, ""]:
        return (carry[0] < steps) & ~jnp.all(carry[1].finished)

    def step(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        return carry[0] + 1, write_one(config, params, carry[1], grammar)

    return jax.lax.while_loop(going, step, (jnp.int32(0), state))[1]


@functools.partial(jax.jit, static_argnums=1)
def _resize(state: DecodeState, places: int) -> DecodeState:
    def pad(buffer: Array) -> Array:
        return jnp.pad(buffer, ((0, 0), (0, places - buffer.shape[1])))

    return state._replace(
        history=pad(state.history),
        log_probs=pad(state.log_probs),
        nearby_log_probs=pad(state.nearby_log_probs),
        cache=resize_cache(state.cache, places),
    )
