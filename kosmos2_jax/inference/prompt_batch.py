"""From text and pictures in reading order to padded arrays (spec sections 3.2 and 5.1).

Letters: B rows, L tokens, N pictures a row, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

TEXT_SLOT = -1  # in image_slots: this place holds text
# Steps of padded lengths, each from some length on: few programs, and little padding.
_STEPS = ((256, 64), (128, 32), (64, 16), (0, 64))


class Prompt(NamedTuple):
    """One row, not yet padded.

    Attributes:
      ids: from `<s>` on.
      image_slots: `picture * num_latents + slot` where a picture stands, -1 at text.
      images: pixels of each picture in reading order.
    """

    ids: Int[np.ndarray, " L"]
    image_slots: Int[np.ndarray, " L"]
    images: tuple[UInt8[np.ndarray, "S S 3"], ...]


class PromptBatch(NamedTuple):
    """Rows padded on the right, so that the place of a token is also its position (trap T-07).

    Attributes:
      tokens: int32.
      lengths: int32, tokens of each row that are no padding; at least 1.
      image_slots: int32, -1 at text and padding.
      images: None if no row has any; rows with fewer than N end with black ones, which nothing
        refers to.
    """

    tokens: Int[np.ndarray, "B L"]
    lengths: Int[np.ndarray, " B"]
    image_slots: Int[np.ndarray, "B L"]
    images: UInt8[np.ndarray, "B N S S 3"] | None


def build_prompt(
    vocabulary: Kosmos2Vocabulary, num_latents: int, segments: Sequence[str | np.ndarray]
) -> Prompt:
    """Turns markup and pictures, in reading order, into one row that begins with `<s>`.

    Each text is tokenised on its own and its tags become tokens, as in the official inference
    code; the slots of a picture get the ids 4, 5, ... (trap T-14).

    Args:
      vocabulary: of the model.
      num_latents: slots of a picture.
      segments: markup strings, and pictures as uint8 [S, S, 3] of one size.

    Raises:
      MarkupError: a tag is not of this vocabulary.
    """
    ids, slots = [vocabulary.bos_id], [TEXT_SLOT]
    images: list[np.ndarray] = []
    for segment in segments:
        if isinstance(segment, str):
            new = vocabulary.encode_markup(segment)
            slots += [TEXT_SLOT] * len(new)
        else:
            new = vocabulary.image_ids(num_latents)
            first = len(images) * num_latents
            slots += [TEXT_SLOT, *range(first, first + num_latents), TEXT_SLOT]
            images.append(segment)
        ids += new
    return Prompt(np.array(ids, np.int32), np.array(slots, np.int32), tuple(images))


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
    longest = max(len(prompt.ids) for prompt in prompts)
    if longest > max_length:
        raise MarkupError(
            f"The prompt has {longest} tokens, pictures included, but the model reads at most "
            f"{max_length}: shorten it."
        )
    shape = (len(prompts), bucket_length(longest))
    tokens = np.full(shape, pad_id, np.int32)
    slots = np.full(shape, TEXT_SLOT, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.ids)] = prompt.ids
        slots[row, : len(prompt.ids)] = prompt.image_slots
    lengths = np.array([len(prompt.ids) for prompt in prompts], np.int32)
    return PromptBatch(tokens, lengths, slots, _stack_images(prompts))


def bucket_length(length: int) -> int:
    """The next of 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, ...

    Prompts of similar lengths share one compiled program; a picture and a short question, 70 to 80
    tokens, are not padded to twice their length.
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
