"""How the next token is chosen: settings by request, and the choice for a batch of mixed ones.

`SamplingConfig` says how one request is to be written. `row_settings` turns those of a batch into
arrays, so that one compiled step serves greedy and sampled rows side by side. What a row gets
depends on its own numbers only: its random numbers follow from its seed, the number of its output
and the number of the token.

Letters: B rows, T places of the token buffer, V vocabulary, S stop ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.grammar import Grammar, GrammarState, allowed_tokens
from kosmos2_jax.inference.ngram import OFFICIAL, VARIANTS, repeated_ngrams
from kosmos2_jax.ranges import Range, check_ranges

# How scores of beams are normalised, see `SamplingConfig.beam_normalization`.
HUGGING_FACE = "hugging_face"
FAIRSEQ = "fairseq"
NORMALIZATIONS = (HUGGING_FACE, FAIRSEQ)

MAX_STOP_IDS = 8
_NOTHING = -1  # fills up stop ids: no token has it


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to write on after a prompt.

    Rules act in transformers' order: repetition penalty, n-grams, temperature, top-k, top-p.

    Attributes:
      max_new_tokens: of an output. The official programs count the prompt too (trap T-37).
      no_repeat_ngram_size: no n-gram of this size is written twice, prompt included; 0 for no
        such rule.
      ngram_variant: "official" or "hugging_face", see `kosmos2_jax.inference.ngram`.
      temperature: divides logits; 0 takes the most likely token always.
      top_k: samples among so many most likely tokens; 0 for all.
      top_p: samples among the fewest most likely tokens that have this share together.
      repetition_penalty: divides positive logits of tokens that stand in the row already, prompt
        included, and multiplies negative ones (transformers' rule); 1 for none.
      seed: of the random numbers, 0 to 2**32 - 1.
      num_outputs: independent outputs of the prompt; with beams, the best so many of them.
      stop_ids: tokens that end an output and stay in it, at most 8.
      stop_strings: strings that end an output and are cut off.
      num_beams: more than 1 for beam search, which takes neither temperature nor stop strings.
      length_penalty: exponent of the length by which the score of a beam is divided.
      beam_normalization: "hugging_face" divides the written tokens' log-probability by their
        number; "fairseq" counts the prompt's log-probability and length too, as the official
        code (trap T-51).
      grammar: only well-formed markup, see `kosmos2_jax.inference.grammar`.
    """

    max_new_tokens: int = 128
    no_repeat_ngram_size: int = 3
    ngram_variant: str = OFFICIAL
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_outputs: int = 1
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    beam_normalization: str = HUGGING_FACE
    grammar: bool = False

    def __post_init__(self) -> None:
        check_ranges(_RANGES, vars(self))
        for name, known in (("ngram_variant", VARIANTS), ("beam_normalization", NORMALIZATIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        if len(self.stop_ids) > MAX_STOP_IDS:
            raise ConfigError(
                f"stop_ids has {len(self.stop_ids)} tokens: give at most {MAX_STOP_IDS}"
            )
        if "" in self.stop_strings:
            raise ConfigError("stop_strings holds an empty string, which would stop at once")
        for name in ("temperature", "stop_strings"):
            if self.num_beams > 1 and getattr(self, name):
                raise ConfigError(f"num_beams is {self.num_beams}: beam search takes no {name}")
        if self.num_beams > 1 and self.num_outputs > self.num_beams:
            raise ConfigError(
                f"num_outputs {self.num_outputs} is more than num_beams {self.num_beams}: beam "
                "search gives an output for each beam at most"
            )


_RANGES = {
    "max_new_tokens": Range(least=1, most=1_000_000),
    "no_repeat_ngram_size": Range(least=0, most=1_000_000),
    "temperature": Range(least=0, most=100),
    "top_k": Range(least=0, most=1_000_000),
    "top_p": Range(above=0, most=1),
    "repetition_penalty": Range(above=0, most=100),
    "seed": Range(least=0, most=2**32 - 1),
    "num_outputs": Range(least=1, most=128),
    "num_beams": Range(least=1, most=64),
    "length_penalty": Range(least=-100, most=100),
}


class RowSettings(NamedTuple):
    """`SamplingConfig`s of a batch as arrays; `output` is the number of the output of a prompt."""

    max_new_tokens: Int[Array, " B"]
    ngram_size: Int[Array, " B"]
    exempt_first: Bool[Array, " B"]
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    seed: Int[Array, " B"]
    output: Int[Array, " B"]
    stop_ids: Int[Array, "B S"]
    grammar: Bool[Array, " B"]


class Choice(NamedTuple):
    """The next token of each row.

    Attributes:
      tokens: int32.
      log_probs: natural logarithm, by the model's own distribution: no rule, temperature or
        grammar counted, as in the official code.
      nearby_log_probs: of a location token, the same summed over the cells that touch its cell,
        corners included; of other tokens as `log_probs`.
    """

    tokens: Int[Array, " B"]
    log_probs: Float[Array, " B"]
    nearby_log_probs: Float[Array, " B"]


def row_settings(
    configs: Sequence[SamplingConfig], outputs: Sequence[int] | None = None
) -> RowSettings:
    """The settings of rows, as arrays of NumPy.

    Args:
      configs: one a row.
      outputs: which output of its prompt each row is; 0 for all if None.
    """

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(config, name) for config in configs], dtype)

    stop_ids = np.full((len(configs), MAX_STOP_IDS), _NOTHING, np.int32)
    for row, config in enumerate(configs):
        stop_ids[row, : len(config.stop_ids)] = config.stop_ids
    return RowSettings(
        max_new_tokens=column("max_new_tokens", np.int32),
        ngram_size=column("no_repeat_ngram_size", np.int32),
        exempt_first=np.array([config.ngram_variant == OFFICIAL for config in configs]),
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        seed=column("seed", np.uint32),
        output=np.array(outputs if outputs is not None else [0] * len(configs), np.int32),
        stop_ids=stop_ids,
        grammar=column("grammar", bool),
    )


def choose_tokens(
    logits: Float[Array, "B V"],
    history: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    written: Int[Array, " B"],
    left: Int[Array, " B"],
    settings: RowSettings,
    config: Kosmos2Config,
    grammar: Grammar | None = None,
    grammar_state: GrammarState | None = None,
) -> Choice:
    """Chooses the next token of every row by its own settings.

    Args:
      logits: of the next token.
      history: prompt and written tokens.
      lengths: of them.
      written: how many tokens of a row are not of its prompt.
      left: tokens that may still be written, this one included; at least 1.
      settings: of the rows.
      config: of the model, whose last tokens are the location tokens.
      grammar: needed by rows with `settings.grammar`.
      grammar_state: of the rows, with `grammar`.
    """
    allowed = allowed_logits(
        logits, history, lengths, written, left, settings, grammar, grammar_state
    )
    best = jnp.argmax(allowed, axis=-1)

    def draw() -> Array:
        heated = allowed / jnp.where(settings.temperature > 0, settings.temperature, 1.0)[:, None]
        noise = _gumbel(settings, written, logits.shape[-1])
        return jnp.argmax(_most_likely(heated, settings) + noise, axis=-1)

    sampled = jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: best)
    tokens = jnp.where(settings.temperature > 0, sampled, best).astype(jnp.int32)
    return Choice(tokens, *token_log_probs(config, logits, tokens))


def allowed_logits(
    logits: Float[Array, "B V"],
    history: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    written: Int[Array, " B"],
    left: Int[Array, " B"],
    settings: RowSettings,
    grammar: Grammar | None = None,
    grammar_state: GrammarState | None = None,
) -> Float[Array, "B V"]:
    """Logits after repetition penalty, the rule of n-grams and the grammar; -inf is forbidden.

    Arguments are as of `choose_tokens`. With the grammar on, the rule of n-grams leaves tags and
    cells alone: else two phrases could not have the same box, nor end with the same word. Where
    every token is blocked, all that is well-formed is allowed.
    """
    size = logits.shape[-1]
    logits = jax.lax.cond(
        jnp.any(settings.repetition_penalty != 1),
        lambda: _penalize(logits, history, lengths, settings.repetition_penalty),
        lambda: logits,
    )
    exempt = settings.exempt_first & (written == 0)
    sizes = jnp.where(exempt, 0, settings.ngram_size)
    blocked = jax.lax.cond(
        jnp.any(sizes > 0),
        lambda: repeated_ngrams(history, lengths, size, sizes),
        lambda: jnp.zeros(logits.shape, bool),
    )
    formed = jnp.arange(size)[None] != Kosmos2Vocabulary.pad_id
    if grammar is None or grammar_state is None:
        return jnp.where(formed & ~blocked, logits, -jnp.inf)
    on = settings.grammar[:, None]
    formed = formed & (allowed_tokens(grammar, grammar_state, left) | ~on)
    free = formed & ~(blocked & ~(on & grammar.is_markup))
    stuck = on & ~jnp.any(free & (logits > -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(jnp.where(stuck, formed, free), logits, -jnp.inf)


def token_log_probs(
    config: Kosmos2Config, logits: Float[Array, "B V"], tokens: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Log-probabilities of tokens and of their neighbourhoods, see `Choice`."""
    total = jax.nn.logsumexp(logits, axis=-1)
    log_probs = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - total
    grid, end = config.grid_size, config.decoder.vocab_size
    if not grid:
        return log_probs, log_probs
    first = end - grid**2
    cell = tokens[:, None] - first
    cells = jnp.arange(grid**2)[None]
    across, down = jnp.abs(cells % grid - cell % grid), jnp.abs(cells // grid - cell // grid)
    near = jnp.where(jnp.maximum(across, down) <= 1, logits[:, first:end], -jnp.inf)
    is_location = (tokens >= first) & (tokens < end)
    return log_probs, jnp.where(is_location, jax.nn.logsumexp(near, axis=-1) - total, log_probs)


def _penalize(
    logits: Float[Array, "B V"],
    history: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    penalty: Float[Array, " B"],
) -> Float[Array, "B V"]:
    inside = jnp.arange(history.shape[1])[None] < lengths[:, None]
    rows = jnp.arange(history.shape[0])[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, history].max(inside)
    penalty = penalty[:, None]
    penalized = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, penalized, logits)


def _gumbel(settings: RowSettings, written: Int[Array, " B"], size: int) -> Float[Array, "B V"]:
    """Random numbers of each row's own, whatever else is in the batch."""

    def row(seed: Array, output: Array, number: Array) -> Array:
        # Named, so that outputs do not change with JAX's default generator.
        key = jax.random.key(seed, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, output), number)
        return jax.random.gumbel(key, (size,))

    return jax.vmap(row)(settings.seed, settings.output, written)


def _most_likely(logits: Float[Array, "B V"], settings: RowSettings) -> Float[Array, "B V"]:
    """Logits with all but the top-k and then the top-p tokens at -inf.

    Thresholds are found by bisection instead of by sorting the vocabulary, which on a CPU takes
    several milliseconds a row.
    """

    def top_k(logits: Array) -> Array:
        k = jnp.where(settings.top_k > 0, settings.top_k, logits.shape[-1])[:, None]
        return _cut(logits, lambda kept: jnp.sum(kept, axis=-1, keepdims=True) >= k)

    def top_p(logits: Array) -> Array:
        shares = jax.nn.softmax(logits, axis=-1)
        p = settings.top_p[:, None]

        def enough(kept: Array) -> Array:
            mass = jnp.sum(jnp.where(kept, shares, 0.0), axis=-1, keepdims=True)
            return mass >= p

        return jnp.where(p < 1, _cut(logits, enough), logits)

    logits = jax.lax.cond(jnp.any(settings.top_k > 0), top_k, lambda x: x, logits)
    return jax.lax.cond(jnp.any(settings.top_p < 1), top_p, lambda x: x, logits)


def _cut(
    values: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B 1"]]
) -> Float[Array, "B V"]:
    """The highest values of each row at which `enough` of them are kept, the others at -inf.

    Args:
      values: without NaN.
      enough: says of what is kept whether it suffices; the more is kept, the sooner.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    # Integers that are ordered as the floats are.
    order = jnp.where(bits < 0, jnp.int32(-(2**31)) - bits, bits)
    low = jnp.full((values.shape[0], 1), -(2**31), jnp.int32)  # keeps everything
    high = jnp.full((values.shape[0], 1), 2**31 - 1, jnp.int32)  # keeps nothing

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        suffices = enough(order >= middle)
        return jnp.where(suffices, middle, low), jnp.where(suffices, high, middle)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(order >= low, values, -jnp.inf)
