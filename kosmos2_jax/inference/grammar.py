"""A grammar of the markup, as tables that run inside the compiled step.

With it a model can write well-formed markup only (spec section 3.5):

    text <phrase> words </phrase> <object> corner corner
         (</delimiter_of_multi_objects/> corner corner)* </object> text ...

Every phrase has a visible word and at least one box; the second corner of a box is not above or
left of the first; what stands open is closed before the last token that may be written. Pieces
that hold "<" are not written at all, for spelled in letters they could read as a tag.

Letters: B rows, V vocabulary (padded), C kinds of tokens, S states.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# Kinds of tokens.
_KINDS = (
    "forbidden", "word", "blank", "aside", "open_phrase", "close_phrase", "open_object",
    "close_object", "delimiter", "location", "end",
)  # fmt: skip
_KIND = {name: number for number, name in enumerate(_KINDS)}
# What may follow in each state, and the state it leads to; how many tokens at least close what
# stands open.
_STATES = {
    "text": (0, {
        "word": "text", "blank": "text", "aside": "text", "end": "text",
        "open_phrase": "empty_phrase",
    }),
    "empty_phrase": (6, {"word": "phrase", "blank": "empty_phrase"}),
    "phrase": (5, {"word": "phrase", "blank": "phrase", "close_phrase": "after_phrase"}),
    "after_phrase": (4, {"open_object": "first_corner"}),
    "first_corner": (3, {"location": "second_corner"}),
    "second_corner": (2, {"location": "after_box"}),
    "after_box": (1, {"delimiter": "first_corner", "close_object": "text"}),
}  # fmt: skip
_NAMES = tuple(_STATES)
_TEXT, _SECOND_CORNER = _NAMES.index("text"), _NAMES.index("second_corner")
_NOWHERE = -1
_WORD_START = "▁"


class Grammar(NamedTuple):
    """The tables.

    Attributes:
      kinds: of each token.
      columns: of the cell of each location token, 0 of other tokens.
      rows: likewise.
      is_markup: tags and location tokens.
      following: state after a token of a kind, -1 where it may not be.
      closing: tokens that it takes at least to close what stands open in a state.
    """

    kinds: Int[Array, " V"]
    columns: Int[Array, " V"]
    rows: Int[Array, " V"]
    is_markup: Bool[Array, " V"]
    following: Int[Array, "S C"]
    closing: Int[Array, " S"]


class GrammarState(NamedTuple):
    """Where each row is.

    Attributes:
      state: of `_STATES`.
      column: of the latest corner.
      row: likewise.
    """

    state: Int[Array, " B"]
    column: Int[Array, " B"]
    row: Int[Array, " B"]


def make_grammar(vocabulary: Kosmos2Vocabulary, padded_size: int) -> Grammar:
    """The tables of a vocabulary, as arrays of NumPy.

    Args:
      vocabulary: of the model.
      padded_size: V, see `kosmos2_jax.config.DecoderConfig.padded_vocab_size`.

    Raises:
      ConfigError: the vocabulary has no location tokens.
    """
    grid = vocabulary.grid_size
    if not grid:
        raise ConfigError("this model has no location tokens, so there is no grammar of boxes")
    kinds = np.full(padded_size, _KIND["forbidden"], np.int32)
    for token, text in enumerate(vocabulary.tokens[: vocabulary.mask_id]):
        if "<" not in text:
            visible = text.replace(_WORD_START, " ").strip()
            kinds[token] = _KIND["word" if visible else "blank"]
    for token, kind in (
        (vocabulary.eos_id, "end"),
        (vocabulary.unk_id, "aside"),
        (vocabulary.end_of_line_id, "aside"),
        (vocabulary.phrase_id, "open_phrase"),
        (vocabulary.end_phrase_id, "close_phrase"),
        (vocabulary.object_id, "open_object"),
        (vocabulary.end_object_id, "close_object"),
        (vocabulary.delimiter_id, "delimiter"),
    ):
        kinds[token] = _KIND[kind]
    cells = np.zeros(padded_size, np.int32)
    first = vocabulary.first_location_id
    kinds[first : first + grid**2] = _KIND["location"]
    cells[first : first + grid**2] = np.arange(grid**2)
    following = np.full((len(_NAMES), len(_KINDS)), _NOWHERE, np.int32)
    for state, (_, arrows) in enumerate(_STATES.values()):
        for kind, name in arrows.items():
            following[state, _KIND[kind]] = _NAMES.index(name)
    return Grammar(
        kinds=kinds,
        columns=cells % grid,
        rows=cells // grid,
        is_markup=np.arange(padded_size) >= vocabulary.mask_id,
        following=following,
        closing=np.array([closing for closing, _ in _STATES.values()], np.int32),
    )


def state_after(grammar: Grammar, vocabulary: Kosmos2Vocabulary, ids: np.ndarray) -> GrammarState:
    """Where a prompt leaves off, as a `GrammarState` of one row of NumPy.

    What stands before the last `</image>` does not count, as for
    `kosmos2_jax.grounding.markup.parse`; what is not well-formed counts as text.
    """
    images = np.flatnonzero(ids == vocabulary.end_image_id)
    state, corner = _TEXT, 0
    for token in ids[images[-1] + 1 if len(images) else 0 :]:
        kind = int(grammar.kinds[token])
        if kind == _KIND["location"]:
            corner = int(token)
        state = max(int(grammar.following[state, kind]), _TEXT)
    column, row = grammar.columns[corner], grammar.rows[corner]
    return GrammarState(*(np.array([value], np.int32) for value in (state, column, row)))


def allowed_tokens(
    grammar: Grammar, state: GrammarState, left: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """Tokens that may come next.

    Args:
      grammar: the tables.
      state: of the rows.
      left: tokens that may still be written, this one included. Where they are too few to close
        what stands open already, they do not count.
    """
    following = jnp.asarray(grammar.following)[state.state]
    legal = following >= 0
    affordable = legal & (jnp.asarray(grammar.closing)[following] < left[:, None])
    kinds = jnp.where(jnp.any(affordable, axis=-1, keepdims=True), affordable, legal)
    allowed = jnp.take(kinds, jnp.asarray(grammar.kinds), axis=1)
    below = (grammar.columns >= state.column[:, None]) & (grammar.rows >= state.row[:, None])
    return allowed & ((state.state != _SECOND_CORNER)[:, None] | below)


def advance_grammar(
    grammar: Grammar, state: GrammarState, tokens: Int[Array, " B"]
) -> GrammarState:
    """Where rows are after a token each; one that is not allowed counts as text."""
    kinds = jnp.asarray(grammar.kinds)[tokens]
    is_corner = kinds == _KIND["location"]
    return GrammarState(
        jnp.maximum(jnp.asarray(grammar.following)[state.state, kinds], _TEXT),
        jnp.where(is_corner, jnp.asarray(grammar.columns)[tokens], state.column),
        jnp.where(is_corner, jnp.asarray(grammar.rows)[tokens], state.row),
    )
