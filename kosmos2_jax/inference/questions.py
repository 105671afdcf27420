"""What can be asked about pictures, as requests to the engine and readers of its outputs.

    questions = Questions(config, vocabulary)
    question = questions.ground(image, "a dog")
    handle = engine.submit(question.request)
    grounded = question.read(handle.result()[0])

Whoever serves many at a time uses these with an `Engine` of its own;
`kosmos2_jax.inference.predictor.Predictor` puts both together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError, MarkupError
from kosmos2_jax.grounding import prompts
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.tags import GROUNDING, OBJECT_OPEN
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.prompt_batch import Prompt, build_prompt
from kosmos2_jax.inference.reading import read_boxes_of, read_caption
from kosmos2_jax.inference.requests import Output, Request
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.vision.preprocessing import ImageSource, square_pixels
from kosmos2_jax.vision.remote import open_image

Segment = str | GroundedText | ImageSource


class Question(NamedTuple):
    """A request, and how an output of it is read."""

    request: Request
    read: Callable[[Output], GroundedText]


@dataclasses.dataclass(frozen=True)
class Turn:
    """A turn of a conversation.

    Attributes:
      question: what the user says; phrases of a `GroundedText` carry their boxes.
      answer: what the model said, as it was read; None for the turn that is to be answered.
      images: pictures that come before the question.
    """

    question: str | GroundedText
    answer: str | GroundedText | None = None
    images: tuple[ImageSource, ...] = ()


@dataclasses.dataclass(frozen=True)
class Questions:
    """Makes questions for a model; each takes a `SamplingConfig` instead of the default one.

    Literal tags in what users write are text like any other, but in `raw` prompts.

    Attributes:
      config: of the model.
      vocabulary: of the model.
      sampling: how answers are written by default.
    """

    config: Kosmos2Config
    vocabulary: Kosmos2Vocabulary
    sampling: SamplingConfig = SamplingConfig()

    def describe(
        self, image: ImageSource, detailed: bool = False, sampling: SamplingConfig | None = None
    ) -> Question:
        """What is in the picture, with the places of things.

        A brief caption keeps the words "An image of" that it begins with, as in transformers; a
        detailed one is the description alone. A model without location tokens gives no boxes.

        Raises:
          ImageError: the picture cannot be read.
        """
        prompt = prompts.describe(detailed)
        grounded = self.vocabulary.grid_size > 0
        if not grounded:
            prompt = prompt.removeprefix(GROUNDING)
        beginning = "" if detailed else prompt.removeprefix(GROUNDING)
        return self._question(
            [self._pixels(image), prompt], sampling, self._reader(beginning, grounded)
        )

    def ground(
        self, image: ImageSource, phrase: str, sampling: SamplingConfig | None = None
    ) -> Question:
        """Where the phrase is: the phrase as text, with one span that has its boxes.

        The model stops after the boxes; no caption is written around them. If it gives the phrase
        no box there is no span and `problems` say why; with `grammar` it always gives one.

        Raises:
          ImageError: the picture cannot be read.
          MarkupError: the phrase is empty or holds tags.
          ConfigError: the model has no location tokens.
        """
        prompt = prompts.ground(phrase)
        self._require_locations("ground")
        sampling = sampling or self.sampling
        stop_ids = (*sampling.stop_ids, self.vocabulary.end_object_id)
        return self._question(
            [self._pixels(image), prompt],
            dataclasses.replace(sampling, stop_ids=stop_ids),
            functools.partial(read_boxes_of, self.vocabulary, phrase=phrase.strip()),
        )

    def refer(
        self, image: ImageSource, box: Sequence[float], sampling: SamplingConfig | None = None
    ) -> Question:
        """What is in the box: the words that follow "It is", boxes of things they name included.

        Args:
          image: the picture.
          box: x1, y1, x2, y2 as fractions of the picture.
          sampling: how to answer.

        Raises:
          ImageError: the picture cannot be read.
          BoxError: the box is reversed, outside of the picture or not a number.
          ConfigError: the model has no location tokens.
        """
        self._require_locations("refer")
        prompt = prompts.refer(box, self.vocabulary.grid_size)
        return self._question(
            [self._pixels(image), prompt], sampling, self._reader("", grounded=False)
        )

    def ask(
        self,
        image: ImageSource | None,
        question: str | GroundedText,
        grounded: bool = False,
        sampling: SamplingConfig | None = None,
    ) -> Question:
        """The answer to a question, with boxes if `grounded`.

        Args:
          image: the picture, or None to ask about no picture.
          question: the question; phrases of a `GroundedText` carry their boxes into the prompt.
          grounded: whether to ask for boxes.
          sampling: how to answer.

        Raises:
          ImageError: the picture cannot be read.
          MarkupError: the question is empty.
          ConfigError: boxes are asked for or given, but the model has no location tokens.
        """
        images = () if image is None else (image,)
        return self.chat([Turn(question, images=images)], grounded, sampling)

    def chat(
        self,
        turns: Sequence[Turn],
        grounded: bool = False,
        sampling: SamplingConfig | None = None,
    ) -> Question:
        """The answer to the last turn; what was said before stands before it, boxes included.

        Args:
          turns: at least one; all but the last have answers.
          grounded: whether to ask for boxes.
          sampling: how to answer.

        Raises:
          As `ask`, and
          MarkupError: there is no turn, or not just the last one is without an answer.
        """
        answered = [turn.answer is not None for turn in turns]
        if not turns or answered != [True] * (len(turns) - 1) + [False]:
            raise MarkupError("A conversation needs an answer to every question but the last.")
        segments: list[str | GroundedText | np.ndarray] = []
        marked = False
        for turn in turns:
            texts = [_as_question(turn.question)]
            if turn.answer is not None:
                texts.append(_as_text(turn.answer))
            if grounded or any(text.spans for text in texts):
                self._require_locations("ground an answer")
            segments += map(self._pixels, turn.images)
            if grounded and not marked:
                segments.append(GROUNDING)
                marked = True
            segments += texts
        return self._question(segments, sampling, self._reader("", grounded))

    def raw(self, segments: Sequence[Segment], sampling: SamplingConfig | None = None) -> Question:
        """What follows any prompt, such as demonstrations of a task before the case at hand.

        Args:
          segments: in reading order: strings with tags as the model knows them, grounded texts,
            pictures (not by a string, use a `pathlib.Path`), and vectors as float
            arrays [K, E], each in the place of a token's embedding.
          sampling: how to write on.

        Raises:
          ImageError: a picture cannot be read.
          MarkupError: a tag is not of this vocabulary.
        """
        grounded = any(isinstance(segment, str) and GROUNDING in segment for segment in segments)
        request = Request(self.prompt(segments), sampling or self.sampling)
        return Question(request, self._reader("", grounded))

    def box_prompt(self, image: ImageSource, phrase: str) -> Prompt:
        """The prompt after which the first corner of the phrase's box comes; raises as `ground`."""
        prompt = prompts.ground(phrase)
        self._require_locations("ground")
        return self._prompt([self._pixels(image), prompt + OBJECT_OPEN])

    def prompt(self, segments: Sequence[Segment]) -> Prompt:
        """The row that the model reads; segments and errors are as of `raw`."""
        return self._prompt(
            [segment if _is_ready(segment) else self._pixels(segment) for segment in segments]
        )

    def _prompt(self, segments: Sequence[str | GroundedText | np.ndarray]) -> Prompt:
        return build_prompt(self.vocabulary, self.config.resampler.num_latents, segments)

    def _pixels(self, image: ImageSource) -> np.ndarray:
        return square_pixels(open_image(image), self.config.vision.image_size)

    def _question(
        self,
        segments: Sequence[str | GroundedText | np.ndarray],
        sampling: SamplingConfig | None,
        read: Callable[[Output], GroundedText],
    ) -> Question:
        return Question(Request(self._prompt(segments), sampling or self.sampling), read)

    def _reader(self, beginning: str, grounded: bool) -> Callable[[Output], GroundedText]:
        return functools.partial(
            read_caption, self.vocabulary, beginning=beginning, grounded=grounded
        )

    def _require_locations(self, task: str) -> None:
        if not self.vocabulary.grid_size:
            raise ConfigError(
                f"this model has no location tokens, so it cannot {task}; it can describe and "
                "answer without boxes"
            )


def _is_ready(segment: Segment) -> bool:
    """Whether it is not a picture."""
    is_vectors = isinstance(segment, np.ndarray) and segment.ndim == 2
    return is_vectors or isinstance(segment, str | GroundedText)


def _as_text(text: str | GroundedText) -> GroundedText:
    return GroundedText(text) if isinstance(text, str) else text


def _as_question(question: str | GroundedText) -> GroundedText:
    """The question with the words around it, its phrases moved along."""
    question = _as_text(question)
    whole = prompts.question_text(question.text)
    indent = len(question.text) - len(question.text.lstrip())
    shift = whole.index(question.text.strip()) - indent
    spans = (
        dataclasses.replace(span, start=span.start + shift, end=span.end + shift)
        for span in question.spans
    )
    return GroundedText(whole, tuple(spans))
