"""Beam search, as transformers does it or as fairseq does (trap T-51).

The beams of a prompt are written into one row of the cache: behind the prompt, which they share,
each step leaves a key and a value for every beam. A table says which of them are a beam's
ancestors, and attention's mask follows from it; when beams are chosen anew, only the table moves.

The two differ in what a score is and when a search ends:

hugging_face: n new tokens score their log-probability / n ** length_penalty; the search ends when
no running beam can still beat the worst of `num_beams` finished ones.

fairseq: n new tokens after a prompt of P score the log-probability of both
/ (P - 1 + n) ** length_penalty; the search ends when `num_beams` have finished, and the last token
that may be written is `</s>`.

`<s>` has no probability and so is not counted.

Letters: B prompts, L their padded length, K beams, C candidates a step, M new tokens at most,
T places of the history, E hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.decoding import Generated, read_prompts, require_default
from kosmos2_jax.inference.grammar import Grammar, GrammarState, advance_grammar
from kosmos2_jax.inference.prompt_batch import PromptBatch, bucket_length
from kosmos2_jax.inference.sampling import (
    FAIRSEQ,
    RowSettings,
    SamplingConfig,
    allowed_logits,
    row_settings,
    token_log_probs,
)
from kosmos2_jax.models.decoder import Cache
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.losses import score_targets

_PAD, _EOS = Kosmos2Vocabulary.pad_id, Kosmos2Vocabulary.eos_id
_LOW = -1e9  # transformers' score of what is not there


class Hypotheses(NamedTuple):
    """Written tokens without the prompt.

    Attributes:
      tokens: padding behind their end.
      lengths: how many they are.
      log_probs: of each, see `kosmos2_jax.inference.sampling.Choice`.
      nearby_log_probs: likewise.
      scores: of the whole; of running beams without normalisation.
    """

    tokens: Int[Array, "B K M"]
    lengths: Int[Array, "B K"]
    log_probs: Float[Array, "B K M"]
    nearby_log_probs: Float[Array, "B K M"]
    scores: Float[Array, "B K"]


class SearchState(NamedTuple):
    """What the loop carries.

    Attributes:
      step: tokens written.
      going: rows whose search goes on.
      running: beams that are written on.
      finished: the best that have ended, best first; at a score of -1e9 there is none.
      ancestors: which beam of each step a running one goes through.
      history: prompt and tokens of the running beams.
      grammar: where the running beams are, [B * K].
    """

    step: Int[Array, ""]
    going: Bool[Array, " B"]
    running: Hypotheses
    finished: Hypotheses
    ancestors: Int[Array, "B K M"]
    history: Int[Array, "B K T"]
    grammar: GrammarState


class Search(NamedTuple):
    """What stays the same throughout a search.

    Attributes:
      lengths: of the prompts.
      prompt_log_probs: of the prompts, 0 if not needed.
      settings: of each beam, [B * K].
      length_penalty: see `SamplingConfig`.
      grammar: its tables, if beams are to follow them.
    """

    lengths: Int[Array, " B"]
    prompt_log_probs: Float[Array, " B"]
    settings: RowSettings
    length_penalty: Float[Array, ""]
    grammar: Grammar | None


def beam_search(
    config: Kosmos2Config,
    params: Any,
    prompts: PromptBatch,
    sampling: SamplingConfig,
    grammar: Grammar | None = None,
    grammar_state: GrammarState | None = None,
) -> Hypotheses:
    """Finds likely continuations of each prompt, best first.

    Args:
      config: of the model.
      params: of the model.
      prompts: rows padded on the right.
      sampling: `num_beams` and the rest; stop strings and the seed do not count.
      grammar: of the vocabulary, needed for `sampling.grammar`.
      grammar_state: where the prompts leave off.
    """
    rows, beams = len(prompts.lengths), sampling.num_beams
    settings = row_settings([sampling] * (rows * beams))
    if grammar is None or grammar_state is None:
        grammar_state = GrammarState(*(jnp.zeros(rows, jnp.int32) for _ in range(3)))
    # Each token that may end a beam could take a place among the candidates (transformers).
    shape = _Shape(
        beams=beams,
        candidates=beams * (2 + len(sampling.stop_ids)),
        places=bucket_length(min(sampling.max_new_tokens, config.decoder.max_length)),
        fairseq=sampling.beam_normalization == FAIRSEQ,
    )
    penalty = jnp.float32(sampling.length_penalty)
    return _search(config, shape, params, prompts, settings, penalty, grammar, grammar_state)


def best_beams(
    config: Kosmos2Config, params: Any, prompts: PromptBatch, sampling: SamplingConfig
) -> Generated:
    """The best beam of each prompt, in the form of `kosmos2_jax.inference.decoding.generate`.

    Raises:
      ConfigError: the settings ask for what only the engine does.
    """
    require_default(sampling, "num_outputs", "grammar")
    found = beam_search(config, params, prompts, sampling)
    kept = slice(0, sampling.max_new_tokens)
    return Generated(found.tokens[:, 0, kept], found.lengths[:, 0], found.log_probs[:, 0, kept])


class _Shape(NamedTuple):
    beams: int
    candidates: int
    places: int
    fairseq: bool


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(
    config: Kosmos2Config,
    shape: _Shape,
    params: Any,
    prompts: PromptBatch,
    settings: RowSettings,
    length_penalty: Float[Array, ""],
    grammar: Grammar | None,
    grammar_state: GrammarState,
) -> Hypotheses:
    lengths, places = prompts.lengths, prompts.tokens.shape[1]
    hidden, cache = read_prompts(
        config, params, *prompts, cache_length=places + shape.beams * shape.places
    )
    prompt_log_probs = jnp.zeros(len(lengths))
    if shape.fairseq:
        prompt_log_probs = _prompt_log_probs(config, params, prompts, hidden)
    search = Search(lengths, prompt_log_probs, settings, length_penalty, grammar)
    module = Kosmos2(config)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    logits = module.apply({"params": params}, last, method="logits")
    logits = jnp.repeat(logits, shape.beams, axis=1)
    state = _choose(config, shape, search, _first(shape, prompts, grammar_state), logits)

    def step(carry: tuple[SearchState, Cache]) -> tuple[SearchState, Cache]:
        state, cache = carry
        logits, cache = _extend(config, shape, params, search, state, cache, places)
        return _choose(config, shape, search, state, logits), cache

    state, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[0].going), step, (state, cache))
    return state.finished


def _prompt_log_probs(
    config: Kosmos2Config, params: Any, prompts: PromptBatch, hidden: Float[Array, "B L E"]
) -> Float[Array, " B"]:
    table = params["decoder"]["token_embedding"]
    targets = jnp.asarray(prompts.tokens)[:, 1:]
    losses = score_targets(
        hidden[:, :-1], table, targets, chunk=64, vocab_size=config.decoder.vocab_size
    ).losses
    inside = jnp.arange(1, prompts.tokens.shape[1])[None] < prompts.lengths[:, None]
    return -jnp.sum(jnp.where(inside, losses, 0.0), axis=1)


def _first(shape: _Shape, prompts: PromptBatch, grammar_state: GrammarState) -> SearchState:
    rows, beams, places = len(prompts.lengths), shape.beams, shape.places
    none = Hypotheses(
        tokens=jnp.full((rows, beams, places), _PAD, jnp.int32),
        lengths=jnp.zeros((rows, beams), jnp.int32),
        log_probs=jnp.zeros((rows, beams, places)),
        nearby_log_probs=jnp.zeros((rows, beams, places)),
        scores=jnp.full((rows, beams), _LOW),
    )
    history = jnp.pad(prompts.tokens, ((0, 0), (0, places)), constant_values=_PAD)
    return SearchState(
        step=jnp.int32(0),
        going=jnp.ones(rows, bool),
        # All beams are alike yet, so that only the first may be continued.
        running=none._replace(scores=none.scores.at[:, 0].set(0.0)),
        finished=none,
        ancestors=jnp.zeros((rows, beams, places), jnp.int32),
        history=jnp.repeat(history[:, None], beams, axis=1),
        grammar=GrammarState(*(jnp.repeat(jnp.asarray(x), beams) for x in grammar_state)),
    )


def _extend(
    config: Kosmos2Config,
    shape: _Shape,
    params: Any,
    search: Search,
    state: SearchState,
    cache: Cache,
    prompt_places: int,
) -> tuple[Float[Array, "B K V"], Cache]:
    """Scores after the latest token of each beam, all beams as tokens of one row."""
    module, rows = Kosmos2(config), len(search.lengths)
    latest = state.step - 1
    beams, steps = jnp.arange(shape.beams), jnp.arange(shape.places)
    tokens = state.running.tokens[:, :, latest]
    slots = jnp.broadcast_to(prompt_places + latest * shape.beams + beams, tokens.shape)
    positions = jnp.broadcast_to((search.lengths + latest)[:, None], tokens.shape)
    of_prompt = jnp.arange(prompt_places)[None] < search.lengths[:, None]
    of_prompt = jnp.repeat(of_prompt[:, None], shape.beams, axis=1)
    written = (state.ancestors[..., None] == beams) & (steps <= latest)[:, None]
    mask = jnp.concatenate([of_prompt, written.reshape(rows, shape.beams, -1)], axis=-1)
    hidden, cache = module.apply(
        {"params": params}, tokens, slots, cache, positions=positions, mask=mask, method="extend"
    )
    return module.apply({"params": params}, hidden, method="logits"), cache


def _choose(
    config: Kosmos2Config,
    shape: _Shape,
    search: Search,
    state: SearchState,
    logits: Float[Array, "B K V"],
) -> SearchState:
    """The state after one more token, of rows whose search goes on."""
    rows, beams, size = logits.shape
    lengths = jnp.repeat(search.lengths, beams) + state.step
    left = jnp.minimum(
        search.settings.max_new_tokens - state.step, config.decoder.max_length - lengths
    )
    flat = logits.reshape(rows * beams, size)
    scores = allowed_logits(
        jax.nn.log_softmax(flat),
        state.history.reshape(rows * beams, -1),
        lengths,
        jnp.broadcast_to(state.step, lengths.shape),
        left,
        search.settings,
        search.grammar,
        state.grammar,
    )
    if shape.fairseq:
        only_end = (left <= 1)[:, None] & (jnp.arange(size) != _EOS)
        scores = jnp.where(only_end, -jnp.inf, scores)
    totals = (state.running.scores.reshape(-1, 1) + scores).reshape(rows, -1)
    totals, index = jax.lax.top_k(totals, shape.candidates)
    parents, tokens = index // size, (index % size).astype(jnp.int32)

    own, nearby = token_log_probs(
        config, _of_beams(logits, parents).reshape(-1, size), tokens.reshape(-1)
    )
    candidates = _longer(state, parents, tokens, own, nearby, totals)
    ends = jnp.any(tokens[..., None] == search.settings.stop_ids[0], axis=-1)
    is_exempt = search.settings.exempt_first[0] & (state.step == 0)
    ends |= (tokens == _EOS) & ~is_exempt
    is_last = left.reshape(rows, beams)[:, :1] <= 1
    new = _next(shape, search, state, candidates, parents, ends | is_last)
    return jax.tree.map(
        lambda before, after: jnp.where(
            # Also of the flattened beams of the grammar's state.
            _expand(state.going, after.shape),
            after,
            before,
        ),
        state._replace(step=state.step + 1),
        new,
    )


def _expand(going: Bool[Array, " B"], shape: tuple[int, ...]) -> Array:
    if not shape:
        return jnp.array(True)
    going = jnp.repeat(going, shape[0] // len(going))
    return going.reshape(-1, *[1] * (len(shape) - 1))


def _longer(
    state: SearchState,
    parents: Int[Array, "B C"],
    tokens: Int[Array, "B C"],
    own: Float[Array, " B*C"],
    nearby: Float[Array, " B*C"],
    totals: Float[Array, "B C"],
) -> Hypotheses:
    """Candidates: beams with a token more."""
    running = state.running

    def add(buffer: Array, values: Array) -> Array:
        return _of_beams(buffer, parents).at[:, :, state.step].set(values.reshape(tokens.shape))

    return Hypotheses(
        tokens=add(running.tokens, tokens),
        lengths=jnp.full(tokens.shape, state.step + 1, jnp.int32),
        log_probs=add(running.log_probs, own),
        nearby_log_probs=add(running.nearby_log_probs, nearby),
        scores=totals,
    )


def _next(
    shape: _Shape,
    search: Search,
    state: SearchState,
    candidates: Hypotheses,
    parents: Int[Array, "B C"],
    ends: Bool[Array, "B C"],
) -> SearchState:
    beams, written = shape.beams, state.step + 1
    # Only what is among the best `beams` candidates may end.
    just = ends & (jnp.arange(shape.candidates) < beams)
    count = jnp.sum(state.finished.scores > _LOW, axis=1)
    if shape.fairseq:
        just &= candidates.scores > _LOW
        just &= jnp.cumsum(just, axis=1) <= (beams - count)[:, None]
        lengths = (search.lengths - 1 + written)[:, None]
        normal = search.prompt_log_probs[:, None] + candidates.scores
    else:
        lengths, normal = written, candidates.scores
    normal = normal / jnp.float32(lengths) ** search.length_penalty
    ended = candidates._replace(scores=jnp.where(just, normal, 2 * _LOW))
    merged = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.finished, ended)
    best, order = jax.lax.top_k(merged.scores, beams)
    finished = jax.tree.map(lambda x: _of_beams(x, order), merged)

    running_scores = candidates.scores + jnp.where(ends, _LOW, 0.0)
    running_scores, chosen = jax.lax.top_k(running_scores, beams)
    running = jax.tree.map(lambda x: _of_beams(x, chosen), candidates)
    running = running._replace(scores=running_scores)
    sources = _of_beams(parents, chosen)
    count = jnp.sum(best > _LOW, axis=1)
    if shape.fairseq:
        going = (count < beams) & ~jnp.all(ends, axis=1)
    else:
        possible = running_scores[:, 0] / jnp.float32(written) ** search.length_penalty
        going = ((count < beams) | (possible > best[:, -1])) & ~jnp.all(ends, axis=1)
    return _continue(search, state, running, sources)._replace(
        step=written, going=state.going & going, finished=finished
    )


def _continue(
    search: Search, state: SearchState, running: Hypotheses, sources: Int[Array, "B K"]
) -> SearchState:
    """The state with other running beams, each grown out of the one that `sources` names."""
    rows, beams = sources.shape
    tokens = running.tokens[:, :, state.step]
    ancestors = _of_beams(state.ancestors, sources)
    history = _of_beams(state.history, sources)
    places = jnp.broadcast_to((search.lengths + state.step)[:, None], tokens.shape)
    row, beam = jnp.arange(rows)[:, None], jnp.arange(beams)[None]
    grammar = GrammarState(
        *(_of_beams(x.reshape(rows, beams), sources).reshape(-1) for x in state.grammar)
    )
    if search.grammar is not None:
        grammar = advance_grammar(search.grammar, grammar, tokens.reshape(-1))
    return state._replace(
        running=running,
        ancestors=ancestors.at[:, :, state.step].set(jnp.broadcast_to(beam, tokens.shape)),
        history=history.at[row, beam, places].set(tokens),
        grammar=grammar,
    )


def _of_beams(values: Array, index: Int[Array, "B K"]) -> Array:
    return jnp.take_along_axis(values, index.reshape(*index.shape, *[1] * (values.ndim - 2)), 1)
