"""Rows of a batch as a person reads them: examples, tokens with weights, pictures with boxes.

Only what stands in the batch is shown, so that a mistake anywhere before it can be seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kosmos2_jax.grounding import markup
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

WORD, TAG, LOCATION = "word", "tag", "location"


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that is read, learnt, or both.

    Attributes:
      text: as the vocabulary has it; "▁" stands for a blank.
      token_id: its id.
      kind: WORD, TAG or LOCATION.
      position: place within the example, from where the row says it begins.
      weight: loss weight of saying it; 0 where it is only read.
    """

    text: str
    token_id: int
    kind: str
    position: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Phrase:
    """Tokens that place boxes on a picture: `<phrase>` to `</object>`, or `<object>` alone.

    Attributes:
      tokens: all of them.
      picture: number of the picture in the row, or None where none stands before.
      span: number of the first of its spans in that picture's `grounded.spans`; None without a
        picture, or where the markup is malformed.
    """

    tokens: tuple[Token, ...]
    picture: int | None
    span: int | None


@dataclasses.dataclass(frozen=True)
class Slots:
    """The places that a picture takes.

    Attributes:
      picture: its number in the row, from 0.
      count: how many places.
      position: of the first one within the example.
      weight: the greatest loss weight of them, which should be 0.
    """

    picture: int
    count: int
    position: int
    weight: float


Part = Token | Phrase | Slots


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the model gets it.

    Attributes:
      number: in the row, from 0.
      pixels: uint8 [S, S, 3].
      grounded: no text, but the phrases after the picture with their boxes, read from tokens.
    """

    number: int
    pixels: np.ndarray
    grounded: GroundedText


@dataclasses.dataclass(frozen=True)
class InspectedExample:
    """An example of a row.

    Attributes:
      task: name of the seqio task it comes from.
      start: its first place in the row.
      size: places it takes; it has one token more, as the last one is only predicted.
      first_position: what the row gives as the position of its first token.
      parts: its tokens in reading order.
      pictures: those that it shows, in reading order.
      notes: sentences about what is odd.
    """

    task: str
    start: int
    size: int
    first_position: int
    parts: tuple[Part, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]

    def tokens(self) -> list[Token]:
        """All tokens but the slots of pictures, in reading order."""
        found: list[Token] = []
        for part in self.parts:
            if not isinstance(part, Slots):
                found += part.tokens if isinstance(part, Phrase) else [part]
        return found


@dataclasses.dataclass(frozen=True)
class InspectedRow:
    """A row of a batch.

    Attributes:
      length: places it has.
      examples: in order.
    """

    length: int
    examples: tuple[InspectedExample, ...]

    @property
    def filled(self) -> int:
        """Places that hold tokens."""
        return sum(example.size for example in self.examples)


def inspect_row(
    batch: Mapping[str, np.ndarray],
    index: int,
    tasks: Sequence[str],
    vocabulary: Kosmos2Vocabulary,
    num_latents: int,
) -> InspectedRow:
    """Reads a row of a batch.

    Args:
      batch: tokens, targets, positions, segment_ids, image_slots int32 [B, L], loss_weights
        float32 [B, L], images uint8 [B, N, S, S, 3].
      index: of the row in the batch.
      tasks: names of its examples' tasks, by segment.
      vocabulary: of the tokens.
      num_latents: slots a picture takes.
    """
    row = {name: values[index] for name, values in batch.items()}
    examples = [
        _inspect_example(row, np.flatnonzero(row["segment_ids"] == segment), task, vocabulary,
                         num_latents)
        for segment, task in enumerate(tasks, start=1)
    ]  # fmt: skip
    return InspectedRow(len(row["tokens"]), tuple(examples))


def _inspect_example(
    row: Mapping[str, np.ndarray],
    places: np.ndarray,
    task: str,
    vocabulary: Kosmos2Vocabulary,
    num_latents: int,
) -> InspectedExample:
    # Inputs and targets are one sequence shifted by one; its first token is never predicted.
    ids = [int(row["tokens"][places[0]]), *row["targets"][places].tolist()]
    weights = [0.0, *row["loss_weights"][places].tolist()]
    slots = row["image_slots"][places]
    first = int(row["positions"][places[0]])
    tokens = [
        Token(_text(vocabulary, token_id), token_id, _kind(vocabulary, token_id), first + i, weight)
        for i, (token_id, weight) in enumerate(zip(ids, weights, strict=True))
    ]
    pictures = [int(slot) // num_latents if slot >= 0 else None for slot in slots] + [None]
    parts, spans = _parts(tokens, pictures, vocabulary)
    return InspectedExample(
        task,
        int(places[0]),
        len(places),
        first,
        tuple(parts),
        tuple(
            Picture(number, row["images"][number], GroundedText("", tuple(found)))
            for number, found in spans.items()
        ),
        tuple(_notes(ids, weights, vocabulary)),
    )


def _parts(
    tokens: Sequence[Token], pictures: Sequence[int | None], vocabulary: Kosmos2Vocabulary
) -> tuple[list[Part], dict[int, list[Span]]]:
    """The parts of an example, and by picture the phrases that are placed on it."""
    parts: list[Part] = []
    spans: dict[int, list[Span]] = {}
    shown: int | None = None
    i = 0
    while i < len(tokens):
        token, end = tokens[i], i + 1
        if pictures[i] is not None:
            shown = pictures[i]
            while pictures[end] == shown:
                end += 1
            spans.setdefault(shown, [])
            weight = max(slot.weight for slot in tokens[i:end])
            parts.append(Slots(shown, end - i, token.position, weight))
        elif (close := _end_of_object(tokens, i, vocabulary)) is not None:
            end = close
            ids = [part.token_id for part in tokens[i:end]]
            found = markup.parse(vocabulary.decode(ids), vocabulary.grid_size).spans
            number = None
            if shown is not None and found:
                number = len(spans[shown])
                spans[shown] += found
            parts.append(Phrase(tuple(tokens[i:end]), shown, number))
        else:
            parts.append(token)
        i = end
    return parts, spans


def _end_of_object(
    tokens: Sequence[Token], start: int, vocabulary: Kosmos2Vocabulary
) -> int | None:
    """The place behind the `</object>` of what begins at `start`; None if nothing does."""
    if not vocabulary.grid_size:
        return None
    ids = [token.token_id for token in tokens[start:]]
    end = 0
    if ids[0] == vocabulary.phrase_id:
        if vocabulary.end_phrase_id not in ids:
            return None
        end = ids.index(vocabulary.end_phrase_id) + 1
    if ids[end : end + 1] != [vocabulary.object_id] or vocabulary.end_object_id not in ids[end:]:
        return None
    return start + ids.index(vocabulary.end_object_id, end) + 1


def _text(vocabulary: Kosmos2Vocabulary, token_id: int) -> str:
    known = 0 <= token_id < vocabulary.vocab_size
    return vocabulary.tokens[token_id] if known else f"<unknown id {token_id}>"


def _kind(vocabulary: Kosmos2Vocabulary, token_id: int) -> str:
    if vocabulary.is_location(token_id):
        return LOCATION
    first_piece = vocabulary.unk_id + 1
    return WORD if first_piece <= token_id < vocabulary.mask_id else TAG


def _notes(
    ids: Sequence[int], weights: Sequence[float], vocabulary: Kosmos2Vocabulary
) -> list[str]:
    notes = []
    if not any(weights):
        notes.append("Nothing of this example is learnt, as where a picture is broken.")
    if max(ids) > vocabulary.end_of_line_id:  # some tag or location of grounding
        said = markup.parse(vocabulary.decode(ids), vocabulary.grid_size)
        notes += said.problems
    return notes
