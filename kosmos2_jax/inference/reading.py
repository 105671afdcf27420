"""From generated tokens to grounded text with a confidence for each box."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from kosmos2_jax.grounding.boxes import Box, cells_to_box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.markup import parse
from kosmos2_jax.grounding.tags import GROUNDING, PHRASE_OPEN
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# A well-formed object with one letter a token, see `_letter`: the tokens that `parse` reads.
_OBJECT = re.compile(r"o(ll(?:dll)*)c")


class Output(NamedTuple):
    """What one row wrote.

    Attributes:
      ids: new tokens without `</s>`.
      log_probs: of each of them, natural logarithm.
      complete: False if the row was cut off at its longest length.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    complete: bool


def read_caption(
    vocabulary: Kosmos2Vocabulary, output: Output, beginning: str, *, grounded: bool
) -> GroundedText:
    """What follows a prompt, as text with scored boxes.

    Args:
      vocabulary: of the model.
      output: the continuation.
      beginning: plain text of the prompt that the continuation completes, part of the result;
        empty where the continuation stands for itself.
      grounded: whether boxes were asked for; if not, their absence is no problem.
    """
    # Decoded together, because the blank that parts them is the first piece's.
    ids = (*vocabulary.encode(beginning), *output.ids)
    markup = (GROUNDING if grounded else "") + vocabulary.decode(ids)
    result = _with_scores(parse(markup, vocabulary.grid_size), vocabulary, output)
    problems = result.problems
    if not grounded and not result.spans:
        problems = problems[:-1]  # which says that nothing is grounded
    if not output.ids:
        problems += ("The model wrote nothing.",)
    return dataclasses.replace(result, problems=problems + _cut_off(output))


def read_boxes_of(vocabulary: Kosmos2Vocabulary, output: Output, phrase: str) -> GroundedText:
    """The phrase that was asked for with the boxes that follow it at once.

    Other words are not kept: the task is to find the phrase.

    Args:
      vocabulary: of the model.
      output: what follows `<phrase> phrase</phrase>`.
      phrase: as the user wrote it, blanks at its ends left out.
    """
    # Behind a tag the blank of a first word stays: text before a box parts it from the phrase.
    rest = vocabulary.decode((vocabulary.end_phrase_id, *output.ids))
    result = parse(f"{PHRASE_OPEN} {phrase}{rest}", vocabulary.grid_size)
    result = _with_scores(result, vocabulary, output)
    for span in result.spans:
        if span.start == 0 and span.text == phrase:
            return GroundedText(phrase, (Span(phrase, 0, len(phrase), span.boxes, span.scores),))
    problems = result.problems + _cut_off(output)
    if result.spans:
        problems += (f"Nothing is grounded: the model gave {phrase!r} no box.",)
    return GroundedText(phrase, (), problems)


def box_scores(
    vocabulary: Kosmos2Vocabulary, ids: Sequence[int], log_probs: Sequence[float]
) -> list[tuple[Box, float]]:
    """Every box of the well-formed objects among some tokens, with its confidence of 0..1.

    The confidence is the geometric mean of the probabilities of the two location tokens, each
    given what comes before it: comparable to the probability of any one token.
    """
    if not vocabulary.grid_size:
        return []
    letters = "".join(_letter(vocabulary, token) for token in ids)
    found = []
    for match in _OBJECT.finditer(letters):
        for place in range(match.start(1), match.end(1), 3):  # two corners and a delimiter
            corners = [ids[place + k] - vocabulary.first_location_id for k in (0, 1)]
            mean = (log_probs[place] + log_probs[place + 1]) / 2
            found.append((cells_to_box(*corners, vocabulary.grid_size), math.exp(mean)))
    return found


def _letter(vocabulary: Kosmos2Vocabulary, token: int) -> str:
    if vocabulary.is_location(token):
        return "l"
    special = {
        vocabulary.object_id: "o",
        vocabulary.end_object_id: "c",
        vocabulary.delimiter_id: "d",
    }
    return special.get(token, ".")


def _with_scores(
    grounded: GroundedText, vocabulary: Kosmos2Vocabulary, output: Output
) -> GroundedText:
    scored = box_scores(vocabulary, output.ids, output.log_probs)
    if [box for span in grounded.spans for box in span.boxes] != [box for box, _ in scored]:
        # The model spelled a tag in letters, which reads like one but has no token of its own.
        return grounded
    rest = iter(score for _, score in scored)
    spans = tuple(
        dataclasses.replace(span, scores=tuple(next(rest) for _ in span.boxes))
        for span in grounded.spans
    )
    return dataclasses.replace(grounded, spans=spans)


def _cut_off(output: Output) -> tuple[str, ...]:
    if output.complete:
        return ()
    return (f"The text was cut off after {len(output.ids)} tokens: raise max_new_tokens.",)
