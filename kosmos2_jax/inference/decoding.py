"""The compiled parts of generation, and `generate`, which writes on after a fixed batch of prompts.

`prefill` reads prompts in one pass and fills a static cache, `extend_by_one` reads one more token
of each row, `advance` chooses the next ones. `generate` loops over them inside one program, as
training and t5x need it; `kosmos2_jax.inference.engine` runs the same parts over a queue.

Letters: B rows, L padded length of the prompts, M new tokens at most, T places of the cache,
N pictures and K given vectors a row, S pixels a side, E hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.grammar import Grammar, GrammarState, advance_grammar
from kosmos2_jax.inference.prompt_batch import EMBEDDING_SLOT, PromptBatch
from kosmos2_jax.inference.sampling import (
    RowSettings,
    SamplingConfig,
    choose_tokens,
    row_settings,
)
from kosmos2_jax.models.decoder import Cache, empty_cache
from kosmos2_jax.models.kosmos2 import Kosmos2

_PAD, _EOS = Kosmos2Vocabulary.pad_id, Kosmos2Vocabulary.eos_id


class Generated(NamedTuple):
    """What was written, without the prompts.

    Attributes:
      tokens: new tokens, that which ended the row included; padding behind it.
      lengths: how many of them each row has.
      log_probs: of each new token, see `kosmos2_jax.inference.sampling.Choice`; 0 at padding.
    """

    tokens: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    log_probs: Float[Array, "B M"]


class DecodeState(NamedTuple):
    """Rows that are being written.

    Attributes:
      history: prompts and new tokens of each row, without gaps.
      lengths: tokens in `history`, at least 1.
      prompt_lengths: how many of them are the prompt's.
      log_probs: of the new tokens, each in its place of `history`.
      nearby_log_probs: likewise, see `kosmos2_jax.inference.sampling.Choice`.
      finished: rows that have ended, or hold nothing.
      settings: of the rows.
      grammar: where each row is in the grammar.
      cache: keys and values of all tokens but the latest.
    """

    history: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    prompt_lengths: Int[Array, " B"]
    log_probs: Float[Array, "B T"]
    nearby_log_probs: Float[Array, "B T"]
    finished: Bool[Array, " B"]
    settings: RowSettings
    grammar: GrammarState
    cache: Cache | tuple[()]


def new_rows(
    config: Kosmos2Config,
    history: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    settings: RowSettings,
    grammar: GrammarState | None = None,
    cache: Cache | tuple[()] = (),
) -> DecodeState:
    """Rows of which nothing is written yet.

    Args:
      config: of the model; a prompt as long as its longest sequence is finished.
      history: the prompts.
      lengths: of the prompts.
      settings: of the rows.
      grammar: where the prompts leave off; in plain text if None.
      cache: of the prompts.
    """
    zeros = jnp.zeros(history.shape, jnp.float32)
    if grammar is None:
        grammar = GrammarState(*(jnp.zeros(len(history), jnp.int32) for _ in range(3)))
    lengths = jnp.asarray(lengths)
    return DecodeState(
        history=history,
        lengths=lengths,
        prompt_lengths=lengths,
        log_probs=zeros,
        nearby_log_probs=zeros,
        finished=lengths >= config.decoder.max_length,
        settings=settings,
        grammar=grammar,
        cache=cache,
    )


def generate(
    config: Kosmos2Config, params: Any, prompts: PromptBatch, sampling: SamplingConfig
) -> Generated:
    """Writes on after each prompt, all rows by the same settings but each by its own seed.

    A program is compiled for each combination of shapes and settings; `batch_prompts` sees to it
    that they are few. Rows do not influence one another. A row ends at `</s>`, at one of
    `stop_ids`, after `max_new_tokens`, or where the model's longest sequence ends.

    Args:
      config: of the model; parameters are stacked if it says `scan_layers`.
      params: of the model, without boxes.
      prompts: rows padded on the right.
      sampling: how; the number of a row counts as that of its output.

    Raises:
      ConfigError: the settings ask for what only the engine does.
    """
    require_default(sampling, "num_outputs", "num_beams", "stop_strings", "grammar")
    return _generate(config, sampling, params, *prompts)


def require_default(sampling: SamplingConfig, *names: str) -> None:
    """Raises `ConfigError` if a setting is not its default one, as only the engine knows others."""
    for name in names:
        if getattr(sampling, name) != getattr(SamplingConfig, name):
            raise ConfigError(
                f"a batch is written without {name}: leave it out, or use "
                "kosmos2_jax.inference.engine.Engine"
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    config: Kosmos2Config,
    sampling: SamplingConfig,
    params: Any,
    tokens: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    image_slots: Int[Array, "B L"],
    images: Array | None,
    embeddings: Float[Array, "B K E"] | None,
) -> Generated:
    rows, places = tokens.shape
    new = sampling.max_new_tokens
    logits, cache = prefill(
        config, params, tokens, lengths, image_slots, images, embeddings, cache_length=places + new
    )
    history = jnp.pad(tokens, ((0, 0), (0, new)), constant_values=_PAD)
    settings = row_settings([sampling] * rows, range(rows))
    state = advance(config, new_rows(config, history, lengths, settings, cache=cache), logits)
    state = jax.lax.while_loop(
        lambda state: ~jnp.all(state.finished),
        lambda state: write_one(config, params, state),
        state,
    )
    return _new_tokens(state, new)


def prefill(
    config: Kosmos2Config,
    params: Any,
    tokens: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    image_slots: Int[Array, "B L"] | None = None,
    images: Array | None = None,
    embeddings: Float[Array, "B K E"] | None = None,
    *,
    cache_length: int,
) -> tuple[Float[Array, "B V"], Cache]:
    """Scores of the token after each prompt, and the filled cache.

    What padding leaves in the cache is overwritten before any token can look at it: a token in
    slot s sees the slots up to s, and the row's own tokens fill those without gaps.

    Args:
      config: of the model.
      params: of the model.
      tokens: prompts, padded on the right.
      lengths: tokens of each row.
      image_slots: as `PromptBatch.image_slots`.
      images: [B, N, S, S, 3] uint8 or normalised float, or None.
      embeddings: vectors that stand for tokens, or None.
      cache_length: T, at least L.
    """
    hidden, cache = read_prompts(
        config,
        params,
        tokens,
        lengths,
        image_slots,
        images,
        embeddings,
        cache_length=cache_length,
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return Kosmos2(config).apply({"params": params}, last, method="logits")[:, 0], cache


def read_prompts(
    config: Kosmos2Config,
    params: Any,
    tokens: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    image_slots: Int[Array, "B L"] | None,
    images: Array | None,
    embeddings: Float[Array, "B K E"] | None = None,
    *,
    cache_length: int,
) -> tuple[Float[Array, "B L E"], Cache]:
    """Final hidden states of prompts and the filled cache; arguments are as of `prefill`."""
    del lengths  # what padding leaves behind is overwritten
    module = Kosmos2(config)
    cache = empty_cache(
        config.decoder,
        len(tokens),
        cache_length,
        scan_layers=config.scan_layers,
        dtype=config.dtype,
    )
    soft = None
    if images is not None and images.shape[1]:
        soft = module.apply({"params": params}, images, method="encode_images")
    if embeddings is not None and image_slots is not None:
        count = 0 if soft is None else soft.shape[1]
        image_slots = jnp.where(
            image_slots <= EMBEDDING_SLOT, count + EMBEDDING_SLOT - image_slots, image_slots
        )
        vectors = jnp.asarray(embeddings, config.dtype)
        soft = vectors if soft is None else jnp.concatenate([soft, vectors], axis=1)
    with jax.named_scope("prefill"):
        return module.apply(
            {"params": params}, tokens, None, cache, soft, image_slots, method="extend"
        )


def write_one(
    config: Kosmos2Config, params: Any, state: DecodeState, grammar: Grammar | None = None
) -> DecodeState:
    """The state with one more token in every unfinished row."""
    with jax.named_scope("decode"):
        logits, cache = extend_by_one(config, params, state)
    return advance(config, state._replace(cache=cache), logits, grammar)


def extend_by_one(
    config: Kosmos2Config, params: Any, state: DecodeState
) -> tuple[Float[Array, "B V"], Cache]:
    """Scores after the latest token of each row, which enters the cache.

    A finished row's latest token enters it again and again, in the same place.
    """
    module = Kosmos2(config)
    slots = state.lengths[:, None] - 1
    latest = jnp.take_along_axis(state.history, slots, axis=1)
    hidden, cache = module.apply({"params": params}, latest, slots, state.cache, method="extend")
    return module.apply({"params": params}, hidden, method="logits")[:, 0], cache


def advance(
    config: Kosmos2Config,
    state: DecodeState,
    logits: Float[Array, "B V"],
    grammar: Grammar | None = None,
) -> DecodeState:
    """The state with the next token added to every unfinished row.

    Args:
      config: of the model.
      state: before.
      logits: of the next token.
      grammar: for rows that ask for it.
    """
    settings, lengths = state.settings, state.lengths
    written = lengths - state.prompt_lengths
    left = jnp.minimum(settings.max_new_tokens - written, config.decoder.max_length - lengths)
    choice = choose_tokens(
        logits, state.history, lengths, written, left, settings, config, grammar, state.grammar
    )
    tokens = choice.tokens
    going = ~state.finished
    rows = jnp.arange(len(lengths))
    # A finished row writes to a place outside of its buffer, that is nowhere.
    places = jnp.where(going, lengths, state.history.shape[1])

    def write(buffer: Array, values: Array) -> Array:
        return buffer.at[rows, places].set(values, mode="drop")

    ends = jnp.any(tokens[:, None] == settings.stop_ids, axis=-1) | (left <= 1)
    # The official generator goes on after an `</s>` that comes first (spec 4.8).
    ends |= (tokens == _EOS) & ~(settings.exempt_first & (written == 0))
    return state._replace(
        history=write(state.history, tokens),
        lengths=lengths + going,
        log_probs=write(state.log_probs, choice.log_probs),
        nearby_log_probs=write(state.nearby_log_probs, choice.nearby_log_probs),
        finished=state.finished | ends,
        grammar=(
            state.grammar if grammar is None else advance_grammar(grammar, state.grammar, tokens)
        ),
    )


def _new_tokens(state: DecodeState, count: int) -> Generated:
    steps = jnp.arange(count)[None]
    lengths = state.lengths - state.prompt_lengths
    places = state.prompt_lengths[:, None] + steps
    inside = steps < lengths[:, None]
    tokens = jnp.take_along_axis(state.history, places, axis=1)
    log_probs = jnp.take_along_axis(state.log_probs, places, axis=1)
    return Generated(jnp.where(inside, tokens, _PAD), lengths, jnp.where(inside, log_probs, 0.0))
