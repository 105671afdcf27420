"""Greedy generation: one pass over the prompts, then a compiled loop over a static cache.

Letters: B rows, L padded length of the prompts, M new tokens at most, T = L + M places of the
cache, N pictures a row, S pixels a side, E hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.inference.ngram import OFFICIAL, VARIANTS, repeated_ngrams
from kosmos2_jax.inference.prompt_batch import PromptBatch
from kosmos2_jax.models.decoder import Cache, empty_cache
from kosmos2_jax.models.kosmos2 import Kosmos2


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How to write on.

    Attributes:
      max_new_tokens: per row. The official programs count the prompt too (trap T-37).
      no_repeat_ngram_size: no n-gram of this size is written twice, prompt included; 0 for no
        such rule.
      ngram_variant: "official" or "hugging_face", see `kosmos2_jax.inference.ngram`.
      eos_id: `</s>`, ends a row.
      pad_id: never chosen; fills up the output behind the end of a row.
      stop_ids: further tokens that end a row.
    """

    max_new_tokens: int = 128
    no_repeat_ngram_size: int = 3
    ngram_variant: str = OFFICIAL
    eos_id: int = 2
    pad_id: int = 1
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.no_repeat_ngram_size < 0:
            raise ConfigError(
                f"no_repeat_ngram_size must be 0 (off) or more, not {self.no_repeat_ngram_size}"
            )
        if self.ngram_variant not in VARIANTS:
            raise ConfigError(
                f"ngram_variant is {self.ngram_variant!r}; it must be one of {', '.join(VARIANTS)}"
            )


class Generated(NamedTuple):
    """What was written, without the prompts.

    Attributes:
      tokens: new tokens, that which ended the row included; padding behind it.
      lengths: how many of them each row has.
      log_probs: of each new token, natural logarithm, by the model's own distribution (the rule
        against repeated n-grams not counted, as in the official code); 0 at padding.
    """

    tokens: Int[Array, "B M"]
    lengths: Int[Array, " B"]
    log_probs: Float[Array, "B M"]


class DecodeState(NamedTuple):
    """What the loop carries.

    Attributes:
      step: new tokens so far.
      history: prompts and new tokens of each row, without gaps.
      lengths: tokens in `history`.
      log_probs: as in `Generated`.
      finished: rows that have ended.
      cache: keys and values of all tokens but the latest.
    """

    step: Int[Array, ""]
    history: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    log_probs: Float[Array, "B M"]
    finished: Bool[Array, " B"]
    cache: Cache


def generate(
    config: Kosmos2Config, params: Any, prompts: PromptBatch, generation: GenerationConfig
) -> Generated:
    """Writes on after each prompt, most likely token by most likely token.

    A program is compiled for each combination of shapes and settings; `batch_prompts` sees to it
    that they are few. Rows do not influence one another. A row ends at `</s>`, at one of
    `stop_ids`, after `max_new_tokens`, or where the model's longest sequence ends.

    Args:
      config: of the model; parameters are stacked if it says `scan_layers`.
      params: of the model, without boxes.
      prompts: rows padded on the right.
      generation: how.
    """
    return _generate(config, generation, params, *prompts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    config: Kosmos2Config,
    generation: GenerationConfig,
    params: Any,
    tokens: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    image_slots: Int[Array, "B L"],
    images: Array | None,
) -> Generated:
    rows, places = tokens.shape
    new = generation.max_new_tokens
    logits, cache = prefill(
        config, params, tokens, lengths, image_slots, images, cache_length=places + new
    )
    state = DecodeState(
        step=jnp.int32(0),
        history=jnp.pad(tokens, ((0, 0), (0, new)), constant_values=generation.pad_id),
        lengths=lengths,
        log_probs=jnp.zeros((rows, new), jnp.float32),
        finished=lengths >= config.decoder.max_length,
        cache=cache,
    )
    state = choose(config, generation, state, logits, is_first=True)

    def unfinished(state: DecodeState) -> Bool[Array, ""]:
        return (state.step < new) & ~jnp.all(state.finished)

    def write_one(state: DecodeState) -> DecodeState:
        with jax.named_scope("decode"):
            logits, cache = _extend_by_one(config, params, state)
        return choose(config, generation, state._replace(cache=cache), logits, is_first=False)

    state = jax.lax.while_loop(unfinished, write_one, state)
    return _new_tokens(generation, state, lengths)


def prefill(
    config: Kosmos2Config,
    params: Any,
    tokens: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    image_slots: Int[Array, "B L"] | None = None,
    images: Array | None = None,
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
      cache_length: T, at least L.
    """
    module = Kosmos2(config)
    rows, places = tokens.shape
    cache = empty_cache(
        config.decoder, rows, cache_length, scan_layers=config.scan_layers, dtype=config.dtype
    )
    soft = None
    if images is not None and images.shape[1]:
        soft = module.apply({"params": params}, images, method="encode_images")
    slots = jnp.broadcast_to(jnp.arange(places), (rows, places))
    with jax.named_scope("prefill"):
        hidden, cache = module.apply(
            {"params": params}, tokens, slots, cache, soft, image_slots, method="extend"
        )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return module.apply({"params": params}, last, method="logits")[:, 0], cache


def _extend_by_one(
    config: Kosmos2Config, params: Any, state: DecodeState
) -> tuple[Float[Array, "B V"], Cache]:
    """Scores after the latest token of each row, which enters the cache."""
    module = Kosmos2(config)
    slots = state.lengths[:, None] - 1
    latest = jnp.take_along_axis(state.history, slots, axis=1)
    hidden, cache = module.apply({"params": params}, latest, slots, state.cache, method="extend")
    return module.apply({"params": params}, hidden, method="logits")[:, 0], cache


def choose(
    config: Kosmos2Config,
    generation: GenerationConfig,
    state: DecodeState,
    logits: Float[Array, "B V"],
    *,
    is_first: bool,
) -> DecodeState:
    """The state with the best allowed token added to every unfinished row.

    Args:
      config: of the model.
      generation: what is allowed and what ends a row.
      state: before.
      logits: of the next token.
      is_first: whether this is the first new token, see `kosmos2_jax.inference.ngram`.
    """
    exempt = is_first and generation.ngram_variant == OFFICIAL
    allowed = logits.at[:, generation.pad_id].set(-jnp.inf)
    if generation.no_repeat_ngram_size and not exempt:
        blocked = repeated_ngrams(
            state.history, state.lengths, logits.shape[-1], generation.no_repeat_ngram_size
        )
        allowed = jnp.where(blocked, -jnp.inf, allowed)
    token = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)

    going = ~state.finished
    rows = jnp.arange(token.shape[0])
    # A finished row writes to a place outside of its buffer, that is nowhere.
    place = jnp.where(going, state.lengths, state.history.shape[1])
    history = state.history.at[rows, place].set(token, mode="drop")
    lengths = state.lengths + going
    ends = jnp.isin(token, jnp.array(generation.stop_ids, jnp.int32))
    if not exempt:
        ends |= token == generation.eos_id
    return DecodeState(
        step=state.step + 1,
        history=history,
        lengths=lengths,
        log_probs=state.log_probs.at[:, state.step].set(jnp.where(going, log_prob, 0.0)),
        finished=state.finished | ends | (lengths >= config.decoder.max_length),
        cache=state.cache,
    )


def _new_tokens(
    generation: GenerationConfig, state: DecodeState, prompt_lengths: Int[Array, " B"]
) -> Generated:
    steps = jnp.arange(generation.max_new_tokens)[None]
    lengths = state.lengths - prompt_lengths
    tokens = jnp.take_along_axis(state.history, prompt_lengths[:, None] + steps, axis=1)
    tokens = jnp.where(steps < lengths[:, None], tokens, generation.pad_id)
    return Generated(tokens, lengths, state.log_probs)
