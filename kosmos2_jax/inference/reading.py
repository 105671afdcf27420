"""From generated tokens to grounded text with a confidence for each box."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from kosmos2_jax.grounding.boxes import Box, cells_to_box
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.markup import parse
from kosmos2_jax.grounding.tags import GROUNDING, PHRASE_OPEN
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.requests import CANCELLED, Output

# A well-formed object with one letter a token, see `_letter`: the tokens that `parse` reads.
_OBJECT = re.compile(r"(?:p(?P<words>\.*)q)?o(?P<corners>ll(?:dll)*)c")


class ScoredBox(NamedTuple):
    """A box that was written, with confidences of 0..1.

    Attributes:
      box: fractions of the picture.
      score: geometric mean of the probabilities of its two location tokens, each given what comes
        before it: comparable to the probability of any one token.
      marginal_score: likewise of the cells of its corners and all that touch them.
      phrase_score: geometric mean of the probabilities of the words of its phrase; None if these
        are not among the tokens.
    """

    box: Box
    score: float
    marginal_score: float
    phrase_score: float | None


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
            return GroundedText(phrase, (dataclasses.replace(span, end=len(phrase)),))
    problems = result.problems + _cut_off(output)
    if result.spans:
        problems += (f"Nothing is grounded: the model gave {phrase!r} no box.",)
    return GroundedText(phrase, (), problems)


def box_scores(vocabulary: Kosmos2Vocabulary, output: Output) -> list[ScoredBox]:
    """Every box of the well-formed objects of an output."""
    if not vocabulary.grid_size:
        return []
    ids = output.ids
    letters = "".join(_letter(vocabulary, token) for token in ids)
    found = []
    for match in _OBJECT.finditer(letters):
        words = slice(*match.span("words"))
        phrase = None
        if words.stop > words.start:
            phrase = _mean_probability(output.log_probs[words])
        start, end = match.span("corners")
        for place in range(start, end, 3):  # two corners and a delimiter
            corners = slice(place, place + 2)
            cells = (token - vocabulary.first_location_id for token in ids[corners])
            found.append(
                ScoredBox(
                    cells_to_box(*cells, vocabulary.grid_size),
                    _mean_probability(output.log_probs[corners]),
                    _mean_probability(output.nearby_log_probs[corners]),
                    phrase,
                )
            )
    return found


def _mean_probability(log_probs: Sequence[float]) -> float:
    return min(math.exp(sum(log_probs) / len(log_probs)), 1.0)


def _letter(vocabulary: Kosmos2Vocabulary, token: int) -> str:
    if vocabulary.is_location(token):
        return "l"
    special = {
        vocabulary.phrase_id: "p",
        vocabulary.end_phrase_id: "q",
        vocabulary.object_id: "o",
        vocabulary.end_object_id: "c",
        vocabulary.delimiter_id: "d",
    }
    return special.get(token, ".")


def _with_scores(
    grounded: GroundedText, vocabulary: Kosmos2Vocabulary, output: Output
) -> GroundedText:
    scored = box_scores(vocabulary, output)
    if [box for span in grounded.spans for box in span.boxes] != [entry.box for entry in scored]:
        # The model spelled a tag in letters, which reads like one but has no token of its own.
        return grounded
    rest, spans = iter(scored), []
    for span in grounded.spans:
        own = [next(rest) for _ in span.boxes]
        spans.append(
            dataclasses.replace(
                span,
                scores=tuple(entry.score for entry in own),
                marginal_scores=tuple(entry.marginal_score for entry in own),
                phrase_score=own[0].phrase_score,
            )
        )
    return dataclasses.replace(grounded, spans=tuple(spans))


def _cut_off(output: Output) -> tuple[str, ...]:
    if output.complete:
        return ()
    if output.finish_reason == CANCELLED:
        return (f"The text was cut off after {len(output.ids)} tokens: it was cancelled.",)
    return (f"The text was cut off after {len(output.ids)} tokens: raise max_new_tokens.",)
