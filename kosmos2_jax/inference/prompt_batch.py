"""From text and pictures in reading order to padded arrays (spec sections 3.2 and 5.1).

Letters: B rows, L tokens, N pictures a row, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

TEXT_SLOT = -1  # in image_slots: this place holds text
# The first of the vectors that are given stands for -2, the next for -3, ..., so that they do not
# depend on how many pictures other rows of a batch have.
EMBEDDING_SLOT = -2
# Steps of padded lengths, each from some length on: few programs, and little padding.
_STEPS = ((256, 64), (128, 32), (80, 16), (64, 8), (0, 64))


class Prompt(NamedTuple):
    """One row, not yet padded.

    Attributes:
      ids: from `<s>` on.
      image_slots: `picture * num_latents + slot` where a picture stands, -1 at text, -2, -3, ...
        where a given vector stands.
      images: pixels of each picture in reading order.
      embeddings: given vectors in reading order, in the place of tokens' unscaled embeddings.
    """

    ids: Int[np.ndarray, " L"]
    image_slots: Int[np.ndarray, " L"]
    images: tuple[UInt8[np.ndarray, "S S 3"], ...]
    embeddings: Float[np.ndarray, "M E"] | None = None


class PromptBatch(NamedTuple):
    """Rows padded on the right, so that the place of a token is also its position (trap T-07).

    Attributes:
      tokens: int32.
      lengths: int32, tokens of each row that are no padding; at least 1.
      image_slots: int32, as of `Prompt`; -1 at padding.
      images: None if no row has any; rows with fewer than N end with black ones, which nothing
        refers to.
      embeddings: None if no row has any; filled up with zeros.
    """

    tokens: Int[np.ndarray, "B L"]
    lengths: Int[np.ndarray, " B"]
    image_slots: Int[np.ndarray, "B L"]
    images: UInt8[np.ndarray, "B N S S 3"] | None
    embeddings: Float[np.ndarray, "B M E"] | None = None


def build_prompt(
    vocabulary: Kosmos2Vocabulary,
    num_latents: int,
    segments: Sequence[str | GroundedText | np.ndarray],
) -> Prompt:
    """Turns texts and pictures, in reading order, into one row that begins with `<s>`.

    Each text is tokenised on its own; the slots of a picture get the ids 4, 5, ... (trap T-14).

    Args:
      vocabulary: of the model.
      num_latents: slots of a picture.
      segments: markup strings, whose tags become tokens as in the official inference code;
        grounded texts, whose phrases get tags and in which literal tags are text like any other;
        pictures as uint8 [S, S, 3] of one size; vectors as float [K, E], each in the place of a
        token.

    Raises:
      MarkupError: a tag is not of this vocabulary, or a phrase does not fit its text.
      BoxError: a box is malformed.
    """
    ids, slots = [vocabulary.bos_id], [TEXT_SLOT]
    images: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    for segment in segments:
        if isinstance(segment, str | GroundedText):
            is_markup = isinstance(segment, str)
            encode = vocabulary.encode_markup if is_markup else vocabulary.encode_grounded
            new = encode(segment)
            slots += [TEXT_SLOT] * len(new)
        elif segment.ndim == 2:
            # The ids that stand for pictures, which only the rule of n-grams looks at.
            new = vocabulary.image_ids(len(segment))[1:-1]
            first = EMBEDDING_SLOT - len(vectors)
            slots += range(first, first - len(segment), -1)
            vectors += list(segment)
        else:
            new = vocabulary.image_ids(num_latents)
            first = len(images) * num_latents
            slots += [TEXT_SLOT, *range(first, first + num_latents), TEXT_SLOT]
            images.append(segment)
        ids += new
    embeddings = np.array(vectors, np.float32) if vectors else None
    return Prompt(np.array(ids, np.int32), np.array(slots, np.int32), tuple(images), embeddings)


def batch_prompts(
    prompts: Sequence[Prompt], *, pad_id: int = Kosmos2Vocabulary.pad_id, max_length: int
) -> PromptBatch:
    """Pads rows to a common length of few possible values; see `bucket_length`.

    Args:
      prompts: at least one.
      pad_id: fills up tokens.
      max_length: tokens a row may have at most.

    Raises:
      MarkupError: a row has more than `max_length` tokens.
    """
    for prompt in prompts:
        check_length(prompt, max_length)
    longest = max(len(prompt.ids) for prompt in prompts)
    shape = (len(prompts), bucket_length(longest))
    tokens = np.full(shape, pad_id, np.int32)
    slots = np.full(shape, TEXT_SLOT, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.ids)] = prompt.ids
        slots[row, : len(prompt.ids)] = prompt.image_slots
    lengths = np.array([len(prompt.ids) for prompt in prompts], np.int32)
    return PromptBatch(tokens, lengths, slots, _stack_images(prompts), _stack_vectors(prompts))


def widen_batch(batch: PromptBatch, places: int, images: int, image_size: int) -> PromptBatch:
    """The same rows with room for more, as other processes may have longer ones.

    Args:
      batch: rows.
      places: tokens of a row, padding included.
      images: pictures of a row; 0 for None, if the batch has none.
      image_size: pixels a side, for a batch without pictures.
    """
    more = ((0, 0), (0, places - batch.tokens.shape[1]))
    found = batch.images
    if found is None and images:
        found = np.zeros((len(batch.tokens), 0, image_size, image_size, 3), np.uint8)
    if found is not None:
        found = np.pad(found, ((0, 0), (0, images - found.shape[1]), (0, 0), (0, 0), (0, 0)))
    return batch._replace(
        tokens=np.pad(batch.tokens, more, constant_values=Kosmos2Vocabulary.pad_id),
        image_slots=np.pad(batch.image_slots, more, constant_values=TEXT_SLOT),
        images=found,
    )


def check_length(prompt: Prompt, max_length: int) -> None:
    """Raises `MarkupError` if a row has more than `max_length` tokens."""
    if len(prompt.ids) > max_length:
        raise MarkupError(
            f"The prompt has {len(prompt.ids)} tokens, pictures included, but the model reads at "
            f"most {max_length}: shorten it."
        )


def bucket_length(length: int) -> int:
    """The next of 64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, ...

    Prompts of similar lengths share one compiled program; a picture and a short question, 70 to 80
    tokens, are hardly padded.
    """
    step = next(step for beginning, step in _STEPS if length > beginning)
    return -(-length // step) * step


def _stack_images(prompts: Sequence[Prompt]) -> np.ndarray | None:
    count = max(len(prompt.images) for prompt in prompts)
    if not count:
        return None
    shape = next(prompt.images[0].shape for prompt in prompts if prompt.images)
    stacked = np.zeros((len(prompts), count, *shape), np.uint8)
    for row, prompt in enumerate(prompts):
        for number, image in enumerate(prompt.images):
            stacked[row, number] = image
    return stacked


def _stack_vectors(prompts: Sequence[Prompt]) -> np.ndarray | None:
    given = [prompt.embeddings for prompt in prompts if prompt.embeddings is not None]
    if not given:
        return None
    shape = (len(prompts), max(map(len, given)), given[0].shape[1])
    stacked = np.zeros(shape, np.float32)
    for row, prompt in enumerate(prompts):
        if prompt.embeddings is not None:
            stacked[row, : len(prompt.embeddings)] = prompt.embeddings
    return stacked
