"""Plain text of an output while it is being written."""

from __future__ import annotations

from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.inference.questions import Question
from kosmos2_jax.inference.requests import LENGTH, Output, Piece


class LiveText:
    """Turns the markup of one output into plain text that only grows."""

    def __init__(self, question: Question) -> None:
        """Of an output of a question."""
        self._question = question
        self._ids: tuple[int, ...] = ()
        self._log_probs: tuple[float, ...] = ()
        self._told = 0

    def receive(self, piece: Piece) -> str:
        """The text that is new."""
        self._ids += piece.ids
        self._log_probs += piece.log_probs
        return self._new(self.so_far().text)

    def so_far(self) -> GroundedText:
        """What is written by now with its phrases and boxes, without scores and problems."""
        grounded = self._question.read(
            Output(self._ids, self._log_probs, self._log_probs, LENGTH, "")
        )
        # What follows "<" may become a tag, which is no text.
        text = grounded.text.partition("<")[0]
        spans = (
            Span(span.text, span.start, span.end, span.boxes)
            for span in grounded.spans
            if span.end <= len(text)
        )
        return GroundedText(text, tuple(spans))

    def end(self, output: Output) -> tuple[str, GroundedText]:
        """The text that is left, and the whole with its boxes."""
        grounded = self._question.read(output)
        return self._new(grounded.text), grounded

    def _new(self, text: str) -> str:
        new = text[self._told :]
        self._told += len(new)
        return new
