"""What finds boxes for phrases, and boxes that somebody has found already.

GRIT was made with GLIP, whose weights no library here reads. Of what stands in its place, Grounding
DINO is GLIP's nearest kin (it reads the whole caption, and gives each box a score for each
phrase); OWLv2 looks at each phrase on its own, and so knows fewer relations but is faster with few
phrases; Kosmos-2 itself gives every phrase a box, with probabilities that are no detector's scores;
a closed vocabulary knows no phrases but names of its classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from kosmos2_jax.data.readers import files
from kosmos2_jax.data.readers.base import parse_json, string
from kosmos2_jax.data.readers.boxes import numbers
from kosmos2_jax.data.skips import DataError, Unusable
from kosmos2_jax.errors import Kosmos2Error


class DetectorError(Kosmos2Error):
    """A detector cannot be used, or not on these pictures."""


@dataclasses.dataclass(frozen=True)
class Query:
    """What a detector is asked.

    Attributes:
      key: of the picture's document, see `kosmos2_jax.data.documents.Document`.
      image: RGB.
      caption: of the picture.
      phrases: to find; at least one.
    """

    key: str
    image: Image.Image
    caption: str
    phrases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a detector answers, in no order.

    Attributes:
      boxes: float [N, 4], x1, y1, x2, y2 as fractions of the picture.
      scores: float [N], 0..1.
      phrase_ids: int [N], indices into the phrases of the query.
    """

    boxes: np.ndarray
    scores: np.ndarray
    phrase_ids: np.ndarray

    @classmethod
    def of(cls, found: Sequence[tuple[int, Sequence[float], float]]) -> Detections:
        """Makes them of (phrase id, box, score)."""
        return cls(
            np.array([box for _, box, _ in found], np.float64).reshape(-1, 4),
            np.array([score for _, _, score in found], np.float64),
            np.array([phrase for phrase, _, _ in found], np.int64),
        )


class Detector(Protocol):
    """Finds phrases in pictures."""

    def detect(self, queries: Sequence[Query]) -> list[Detections]:
        """Answers queries in their order. Raises `DetectorError` where it cannot."""


class DetectorConfig(Protocol):
    """A frozen dataclass that names a detector; it travels to processes that open it."""

    def open(self) -> Detector:
        """Loads the detector. Raises `DetectorError` if it cannot be."""


@functools.lru_cache(maxsize=1)
def open_detector(config: DetectorConfig) -> Detector:
    """Opens a detector, once a process."""
    return config.open()


@dataclasses.dataclass(frozen=True)
class PrecomputedConfig:
    """Boxes from a file of JSON lines, which other programs can write.

    A line is `{"key": KEY, "boxes": [{"phrase": "a dog", "box": [x1, y1, x2, y2], "score": 0.9}]}`;
    boxes are in fractions, a phrase is a noun chunk of the caption in any case, and the key is the
    document's, as `FILE:NAME` ("00000.tar:000000003").

    Attributes:
      model: the file.
    """

    model: str

    def open(self) -> Detector:
        """Reads the file.

        Raises:
          DetectorError: a line is malformed.
        """
        found: dict[str, list[tuple[str, tuple[float, ...], float]]] = {}
        for number, line in files.lines(self.model):
            try:
                if isinstance(line, Unusable):
                    raise line
                record = parse_json(line)
                boxes = found.setdefault(string(record, "key"), [])
                boxes += map(_read_box, record.get("boxes", []))
            except (Unusable, TypeError) as problem:
                raise DetectorError(
                    f"line {int(number) + 1} of {self.model!r} is malformed ({problem}): mend it."
                ) from None
        return Precomputed(found)


def _read_box(item: Any) -> tuple[str, tuple[float, ...], float]:
    if not isinstance(item, dict):
        raise Unusable("box is not a JSON object")
    (score,) = numbers([item.get("score", 1.0)], 1)
    return string(item, "phrase").casefold(), numbers(item.get("box"), 4), score


class Precomputed:
    """Looks boxes up."""

    def __init__(self, boxes: Mapping[str, Sequence[tuple[str, tuple[float, ...], float]]]) -> None:
        """Takes (phrase in small letters, box, score) by the document's key."""
        self._boxes = boxes

    def detect(self, queries: Sequence[Query]) -> list[Detections]:
        """Gives the boxes of each query's phrases."""
        return [self._of(query) for query in queries]

    def _of(self, query: Query) -> Detections:
        ids: dict[str, int] = {}
        for number, phrase in enumerate(query.phrases):
            ids.setdefault(phrase.casefold(), number)
        return Detections.of(
            [
                (ids[phrase], box, score)
                for phrase, box, score in self._boxes.get(query.key, ())
                if phrase in ids
            ]
        )


def require_folder(path: str, what: str) -> str:
    """Returns a path that must be there.

    Raises:
      DetectorError: it is not.
    """
    try:
        (found,) = files.expand_glob(path, "--model")
    except (DataError, ValueError):
        raise DetectorError(f"There is no {what} at {path!r}: mend --model.") from None
    return found
