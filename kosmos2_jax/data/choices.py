"""Candidates of an example as they travel to who scores them.

Candidates after the same prompt stand in one row, so that the prompt is read once. Where pictures
or words before them differ, as in Winograd's schemas and Raven's matrices, each has its own row.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kosmos2_jax.data.examples import Example, Picture, Text, encode_example
from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding import tags
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# Features of examples whose answer is one of several. tf.string []: the rows, see `read_rows`.
CANDIDATES = "candidates"
# tf.int32 []: there where the model first writes something, the place of it in each row's prompt.
RATIONALE = "rationale"
# tf.bool []: there where the most likely candidate is written, instead of all being scored.
CONSTRAINED = "constrained"
FEATURES = (CANDIDATES, RATIONALE, CONSTRAINED)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A prompt, and candidates of what follows it.

    Attributes:
      prompt: pictures and markup in reading order.
      answers: candidates.
    """

    prompt: tuple[Picture | Text, ...]
    answers: tuple[str, ...]

    def example(self, answer: int) -> Example:
        """The prompt with one of its answers as what is to be said."""
        text = tags.require_no_tags(self.answers[answer], "The answer")
        return Example((*self.prompt, Text(text, True)))


@dataclasses.dataclass(frozen=True)
class CandidateRow:
    """A choice in tokens.

    Attributes:
      ids: of the prompt, from `<s>` on.
      image_slots: of each: picture * num_latents + slot, -1 at text.
      pictures: numbers of the row's pictures among those of the example.
      answers: ids of each candidate.
    """

    ids: list[int]
    image_slots: list[int]
    pictures: list[int]
    answers: list[list[int]]


def read_rows(encoded: str | bytes) -> list[CandidateRow]:
    """The rows of an example; all their answers in order are its candidates."""
    return [CandidateRow(**fields) for fields in json.loads(encoded)]


def longest(rows: Sequence[CandidateRow]) -> int:
    """Tokens of the longest prompt with its longest answer."""
    return max(len(row.ids) + max(map(len, row.answers)) for row in rows)


def encode_choices(
    choices: Sequence[Choice],
    shown: int,
    vocabulary: Kosmos2Vocabulary,
    num_latents: int,
    max_tokens: int,
    *,
    ends: bool = False,
    rationale_prompt: str = "",
) -> dict[str, Any]:
    """Turns choices into features of an example.

    Args:
      choices: with the same number of answers each.
      shown: which candidate, counted over all choices, is the example's text.
      vocabulary: of the model.
      num_latents: slots a picture takes.
      max_tokens: of a prompt with one of its candidates at most.
      ends: whether a candidate is a whole answer: `</s>` after it is scored too, and the most
        likely one is written.
      rationale_prompt: if not empty, what follows the pictures instead of the prompt's words; what
        the model writes then stands between the pictures and these words.

    Returns:
      Those of `kosmos2_jax.data.examples.encode_example` of the candidate that is shown, with the
      pictures of all choices, and `CANDIDATES`, `RATIONALE`, `CONSTRAINED` where they apply.

    Raises:
      MarkupError: a text holds a tag, a candidate has no tokens, or there are too many.
    """
    pictures: dict[bytes, int] = {}
    rows = [_encode_row(choice, pictures, vocabulary, num_latents, ends) for choice in choices]
    if (tokens := longest(rows)) > max_tokens:
        raise MarkupError(f"{tokens:,} tokens are more than the {max_tokens:,} that are read.")
    which, answer = divmod(shown, len(choices[0].answers))
    choice = choices[which]
    if rationale_prompt:
        seen = (part for part in choice.prompt if isinstance(part, Picture))
        choice = Choice((*seen, Text(rationale_prompt, False)), choice.answers)
    features: dict[str, Any] = dict(encode_example(choice.example(answer), vocabulary, num_latents))
    slots, own = features["image_slots"], np.array(rows[which].pictures or [0], np.int32)
    features["image_slots"] = np.where(
        slots < 0, slots, own[slots // num_latents] * num_latents + slots % num_latents
    ).astype(np.int32)
    features["images"] = np.empty(len(pictures), object)
    features["images"][:] = list(pictures)
    features[CANDIDATES] = json.dumps([vars(row) for row in rows]).encode()
    if rationale_prompt:
        # Behind the last picture and its `</image>`.
        last = np.flatnonzero(np.array(rows[0].image_slots) >= 0)[-1]
        features[RATIONALE] = np.int32(last + 2)
    if ends:
        features[CONSTRAINED] = np.bool_(True)
    return features


def _encode_row(
    choice: Choice,
    pictures: dict[bytes, int],
    vocabulary: Kosmos2Vocabulary,
    num_latents: int,
    ends: bool,
) -> CandidateRow:
    example = encode_example(choice.example(0), vocabulary, num_latents)
    first = int(np.argmax(example["loss_weights"] > 0))
    seen = [part.image for part in choice.prompt if isinstance(part, Picture)]
    numbers = [pictures.setdefault(picture, len(pictures)) for picture in seen]
    answers = _answer_ids(vocabulary, choice.answers, ends)
    ids, slots = (example[name][:first].tolist() for name in ("targets", "image_slots"))
    return CandidateRow(ids, slots, numbers, answers)


@functools.lru_cache(maxsize=256)  # the thousand names of ImageNet's classes follow each picture
def _answer_ids(
    vocabulary: Kosmos2Vocabulary, answers: tuple[str, ...], ends: bool
) -> list[list[int]]:
    found = []
    for answer in answers:
        ids = vocabulary.encode(tags.require_no_tags(answer, "The answer"))
        if not ids:
            raise MarkupError(f"The answer {answer!r} has no tokens: write another.")
        found.append([*ids, vocabulary.eos_id] if ends else ids)
    return found
