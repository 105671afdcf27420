"""Kosmos-2 as the detector of a GRIT builder: a model that labels its own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kosmos2_jax.data.grit_builder.detectors import Detections, DetectorError, Query
from kosmos2_jax.errors import CheckpointError, MarkupError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Kosmos2Config:
    """A Kosmos-2.

    Attributes:
      model: checkpoint of any format.
    """

    model: str

    def open(self) -> Kosmos2Detector:
        """Loads the model.

        Raises:
          DetectorError: it cannot be loaded.
        """
        try:
            return Kosmos2Detector(Predictor.from_pretrained(self.model))
        except CheckpointError as error:
            raise DetectorError(f"The detector cannot be loaded: {error}") from error


class Kosmos2Detector:
    """Asks a model where each phrase is.

    The score of a box is what the model gives it: the probability of its location tokens, which is
    no detector's confidence. Choose the threshold by looking.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Takes a model that has location tokens."""
        self._predictor = predictor

    def detect(self, queries: Sequence[Query]) -> list[Detections]:
        """Answers all phrases together. A phrase with a tag in it has no box."""
        asked, questions = [], []
        for place, query in enumerate(queries):
            for number, phrase in enumerate(query.phrases):
                try:
                    questions.append(self._predictor.questions.ground(query.image, phrase))
                except MarkupError:
                    continue  # "<", which no phrase with a box may hold
                asked.append((place, number))
        found: list[list[tuple[int, Box, float]]] = [[] for _ in queries]
        answers = self._predictor.answer(questions)
        for (place, number), (answer,) in zip(asked, answers, strict=True):
            for span in answer.spans:
                boxes = zip(span.boxes, span.scores, strict=True)
                found[place] += [(number, box, score) for box, score in boxes]
        return [Detections.of(of_query) for of_query in found]
