"""Plain grounding: a picture, and what to look for in it.

    {"image": "data:image/png;base64,...", "phrase": "a dog"}

`phrases` takes several, and without any the picture is described. The picture may also be the
body itself, with the other fields in the query: POST /v1/ground?phrase=a+dog
"""

from __future__ import annotations

import dataclasses
from typing import Any

from PIL import Image

from kosmos2_jax.grounding import prompts
from kosmos2_jax.inference.questions import Question, Questions
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.chat import check_model
from kosmos2_jax.serving.fields import Fields, read_sampling
from kosmos2_jax.serving.settings import RequestError, ServerSettings


@dataclasses.dataclass(frozen=True)
class GroundRequest:
    """A request that was read.

    Attributes:
      image_url: of the picture; None where it is the body.
      phrases: to look for; none for a description.
      detailed: whether the description is to have several sentences.
      sampling: how to answer.
    """

    image_url: str | None
    phrases: tuple[str, ...]
    detailed: bool
    sampling: SamplingConfig

    def questions(self, questions: Questions, image: Image.Image) -> list[Question]:
        """What the engine is asked: once for each phrase."""
        if not self.phrases:
            return [questions.describe(image, self.detailed, self.sampling)]
        return [questions.ground(image, phrase, self.sampling) for phrase in self.phrases]


def read_ground(
    data: Any, questions: Questions, settings: ServerSettings, *, has_image: bool
) -> GroundRequest:
    """Reads the fields of a request; `has_image` says that the picture came apart from them.

    Raises:
      RequestError: something is missing, unknown or of the wrong kind.
      MarkupError: a phrase is empty or holds tags.
    """
    fields = Fields(data)
    check_model(fields, settings)
    image_url = None if has_image else fields.text("image")
    if image_url is None and not has_image:
        raise fields.error("image", "is missing: send data:image/png;base64,...")
    phrases = _read_phrases(fields)
    for phrase in phrases:
        prompts.ground(phrase)
    detailed = fields.flag("detailed")
    if detailed and phrases:
        raise fields.error("detailed", "is for descriptions, which have no phrase")
    sampling = read_sampling(
        fields, questions.sampling, settings, questions.vocabulary.grid_size > 0
    )
    fields.end()
    if len(phrases) * sampling.num_outputs > settings.max_outputs:
        raise RequestError(
            f"{len(phrases)} phrases times n={sampling.num_outputs} is more than the "
            f"{settings.max_outputs} outputs that a request may ask for.",
            param="phrases",
        )
    return GroundRequest(image_url, phrases, detailed, sampling)


def _read_phrases(fields: Fields) -> tuple[str, ...]:
    phrase, several = fields.text("phrase"), fields.list("phrases")
    if phrase is not None and several:
        raise fields.error("phrase", "and phrases are both there: keep one of them")
    if phrase is not None:
        return (phrase,)
    if not all(isinstance(value, str) for value in several):
        raise fields.error("phrases", "must be a list of strings")
    return tuple(fields.clean("phrases", value) for value in several)
