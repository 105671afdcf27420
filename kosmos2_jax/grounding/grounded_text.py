"""Text whose phrases point at boxes: what goes into training and what comes out of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.boxes import Box

Entity = tuple[str, tuple[int, int], list[tuple[float, float, float, float]]]


@dataclasses.dataclass(frozen=True)
class Span:
    """A phrase of the text and the boxes it points at.

    Attributes:
      text: the phrase, `grounded.text[start:end]`. A box without a phrase has the placeholder
        name `<patch_index_A><patch_index_B>` and an empty range, as in transformers.
      start: first character in the text.
      end: character after the last one.
      boxes: normalised to 0..1 of the picture.
      scores: one confidence of 0..1 for each box, or empty where none is known.
      marginal_scores: likewise, of the box or one whose corners are in touching cells.
      phrase_score: confidence of 0..1 in the words; None where the model did not write them.
    """

    text: str
    start: int
    end: int
    boxes: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    marginal_scores: tuple[float, ...] = ()
    phrase_score: float | None = None


@dataclasses.dataclass(frozen=True)
class GroundedText:
    """Text with grounded phrases.

    Attributes:
      text: without any tags.
      spans: in order of the text.
      problems: for parsed text, a sentence for everything in the markup that is malformed and,
        where no phrase has a box, one that says why.
    """

    text: str
    spans: tuple[Span, ...] = ()
    problems: tuple[str, ...] = ()

    def entities(self) -> list[Entity]:
        """Returns [(name, (start, end), [(x1, y1, x2, y2), ...]), ...] as transformers does."""
        return [
            (span.text, (span.start, span.end), [tuple(box) for box in span.boxes])
            for span in self.spans
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the text as what JSON can hold; `from_dict` reads it."""
        return {
            "text": self.text,
            "spans": [
                {
                    "text": span.text,
                    "start": span.start,
                    "end": span.end,
                    "boxes": [list(box) for box in span.boxes],
                    "scores": list(span.scores),
                    "marginal_scores": list(span.marginal_scores),
                    "phrase_score": span.phrase_score,
                }
                for span in self.spans
            ],
            "problems": list(self.problems),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GroundedText:
        """Reads what `to_dict` wrote; scores and problems may be left out.

        Raises:
          MarkupError: a key is missing or has a value of the wrong kind.
        """
        try:
            spans = tuple(
                Span(
                    text=str(span["text"]),
                    start=int(span["start"]),
                    end=int(span["end"]),
                    boxes=tuple(Box(*(float(v) for v in box)) for box in span["boxes"]),
                    scores=tuple(float(score) for score in span.get("scores", ())),
                    marginal_scores=tuple(float(x) for x in span.get("marginal_scores", ())),
                    phrase_score=_optional(span.get("phrase_score")),
                )
                for span in data.get("spans", ())
            )
            problems = tuple(str(problem) for problem in data.get("problems", ()))
            return cls(str(data["text"]), spans, problems)
        except KeyError as error:
            raise MarkupError(f"Grounded text without the key {error.args[0]!r}.") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise MarkupError(f"Grounded text is malformed: {error}.") from None


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def sorted_spans(grounded: GroundedText) -> tuple[Span, ...]:
    """Returns the spans in order of the text after checking that tags can be put around them.

    Raises:
      MarkupError: a span is empty or outside the text, names other characters than those at its
        place, or overlaps another one (spec section 4.3, trap T-32).
    """
    text = grounded.text
    spans = tuple(sorted(grounded.spans, key=lambda span: (span.start, span.end)))
    for span in spans:
        where = f"Phrase {span.text!r} at characters {span.start} to {span.end}"
        if not 0 <= span.start <= span.end <= len(text):
            raise MarkupError(f"{where} is outside the text, which has {len(text)} characters.")
        found = text[span.start : span.end]
        if not found.strip():
            raise MarkupError(f"{where} is empty: a phrase needs at least one visible character.")
        if found.strip() != span.text.strip():
            raise MarkupError(f"{where} does not fit the text, which has {found!r} there.")
    for before, after in zip(spans, spans[1:], strict=False):
        if after.start < before.end:
            raise MarkupError(
                f"Two phrases overlap: {before.text!r} ends at character {before.end} but "
                f"{after.text!r} begins at {after.start}; keep one of them."
            )
    return spans
