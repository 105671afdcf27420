"""One example: pictures and text in reading order, and its way into token features.

Spec section 4.1: `<s> <image> slots </image> text </s>`, where the loss counts from the token
after `</image>`; of a question, or of a phrase to be located, only the answer counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding import markup, prompts, tags
from kosmos2_jax.grounding.boxes import OFFICIAL, Box
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture at this place of the text: uint8 [S, S, 3], or encoded (JPEG, PNG, ...)."""

    image: np.ndarray | bytes


@dataclasses.dataclass(frozen=True)
class Text:
    """Words at this place: a markup string, or grounded text that is tagged as in training.

    Attributes:
      content: markup is split at its tags; grounded text is tokenised as a whole and then
        tagged (spec section 4.3).
      is_target: whether the model shall learn to say it.
    """

    content: str | GroundedText
    is_target: bool


@dataclasses.dataclass(frozen=True)
class Boxes:
    """`<object>...</object>` of the phrase before it, always to be learnt."""

    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """What one sequence holds, without `<s>` and `</s>`."""

    parts: tuple[Picture | Text | Boxes, ...]


def caption_example(image: np.ndarray | bytes, caption: GroundedText) -> Example:
    """`<grounding>` caption with tags; without any boxes it is plain text (spec section 4.3)."""
    if not any(span.boxes for span in caption.spans):
        return Example((Picture(image), Text(GroundedText(caption.text), True)))
    return Example((Picture(image), Text(tags.GROUNDING, True), Text(caption, True)))


def referring_example(
    image: np.ndarray | bytes,
    expressions: Sequence[tuple[str, tuple[Box, ...]]],
    *,
    learn_words: bool = False,
) -> Example:
    """`<grounding><phrase> the red star</phrase><object>...</object>`, and so on for each.

    One expression is the prompt of referring expression comprehension (spec section 5.3);
    several in a row teach as much for the price of one picture.

    Args:
      image: see `Picture`.
      expressions: text and boxes of each.
      learn_words: whether the expressions are learnt too, as captions are, or boxes alone.
    """
    parts: list[Picture | Text | Boxes] = [Picture(image)]
    for i, (expression, boxes) in enumerate(expressions):
        prompt = prompts.ground(expression)
        prompt = prompt if i == 0 else prompt.removeprefix(tags.GROUNDING)
        parts.append(Text(prompt, learn_words))
        parts.append(Boxes(boxes))
    return Example(tuple(parts))


def grounding_prompt(caption: GroundedText, span: int) -> str:
    """Markup that asks for the boxes of one phrase after the words before it (spec 5.2)."""
    phrase = caption.spans[span]
    before = tags.require_no_tags(caption.text[: phrase.start], "The caption").rstrip()
    return tags.GROUNDING + before + prompts.ground(phrase.text).removeprefix(tags.GROUNDING)


def grounding_example(image: np.ndarray | bytes, caption: GroundedText, span: int) -> Example:
    """Phrase grounding: `grounding_prompt`, then the boxes of the phrase."""
    prompt = Text(grounding_prompt(caption, span), False)
    return Example((Picture(image), prompt, Boxes(caption.spans[span].boxes)))


def question_example(
    images: Sequence[np.ndarray | bytes], pairs: Sequence[tuple[str, str]]
) -> Example:
    """Pictures, then `Question: {question} Answer: {answer}` of each pair; answers are learnt."""
    parts: list[Picture | Text | Boxes] = [Picture(image) for image in images]
    for question, answer in pairs:
        answer = tags.require_no_tags(answer, "The answer")
        parts += [Text(prompts.ask(question, grounded=False), False), Text(answer, True)]
    return Example(tuple(parts))


def encode_example(
    example: Example,
    vocabulary: Kosmos2Vocabulary,
    num_latents: int,
    quantiser: str = OFFICIAL,
    word_weight: float = 1.0,
) -> dict[str, np.ndarray]:
    """Turns an example into the features of `kosmos2_jax.data.features`.

    Args:
      example: pictures must be all encoded, or all pixels of one size.
      vocabulary: tokens and the grid of locations.
      num_latents: slots a picture takes.
      quantiser: how boxes become cells, see `kosmos2_jax.grounding.boxes`.
      word_weight: loss weight of what is to be learnt beside location tokens in an example that
        has some; 1 as in the published code (spec section 4.5).

    Returns:
      `targets` int32 [n]: the ids from `<s>` to `</s>`; `loss_weights` float32 [n]: above 0 where
      the model shall learn to say this token; `image_slots` int32 [n]: picture * num_latents +
      slot, -1 at text; `images` uint8 [N, S, S, 3], or objects [N] of encoded bytes, also where
      there is no picture.

    Raises:
      MarkupError: nothing is to be learnt, or text and phrases do not fit.
      BoxError: a box is malformed.
    """
    ids, weights, slots = [vocabulary.bos_id], [0.0], [-1]
    pictures: list[np.ndarray | bytes] = []
    learn = 0.0
    for part in example.parts:
        if isinstance(part, Picture):
            new = vocabulary.image_ids(num_latents)
            first = len(pictures) * num_latents
            slots += [-1, *range(first, first + num_latents), -1]
            pictures.append(part.image)
            learn = 0.0
        else:
            new = _encode_part(part, vocabulary, quantiser)
            slots += [-1] * len(new)
            learn = float(isinstance(part, Boxes) or part.is_target)
        ids += new
        weights += [learn] * len(new)
    ids.append(vocabulary.eos_id)
    weights.append(learn)
    slots.append(-1)
    targets, loss_weights = np.array(ids, np.int32), np.array(weights, np.float32)
    if word_weight != 1.0 and (places := vocabulary.is_location(targets)).any():
        loss_weights[~places] *= word_weight
    if not loss_weights.any():
        raise MarkupError("This example has no text to learn: mark a part of it as target.")
    return {
        "targets": targets,
        "loss_weights": loss_weights,
        "image_slots": np.array(slots, np.int32),
        "images": _stack(pictures),
    }


def _stack(pictures: Sequence[np.ndarray | bytes]) -> np.ndarray:
    if pictures and isinstance(pictures[0], np.ndarray):
        return np.stack(pictures)
    # An array of numpy's own bytes would lose zeros at the end of a picture.
    encoded = np.empty(len(pictures), object)
    encoded[:] = pictures
    return encoded


def _encode_part(part: Text | Boxes, vocabulary: Kosmos2Vocabulary, quantiser: str) -> list[int]:
    if isinstance(part, Boxes):
        ids = vocabulary.encode_markup(
            markup.render_object(part.boxes, vocabulary.grid_size, quantiser)
        )
    elif isinstance(part.content, GroundedText):
        ids = vocabulary.encode_grounded(part.content, quantiser)
    else:
        ids = list(_encode_markup(vocabulary, part.content))
    return ids


@functools.lru_cache(maxsize=1 << 14)
def _encode_markup(vocabulary: Kosmos2Vocabulary, text: str) -> tuple[int, ...]:
    """Prompts repeat a lot, and looking up is much cheaper than tokenising."""
    return tuple(vocabulary.encode_markup(text))
