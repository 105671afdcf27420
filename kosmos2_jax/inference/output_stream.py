"""One output on its way from the rows to whoever asked for it."""

from __future__ import annotations

from collections.abc import Sequence

from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.prompt_batch import Prompt
from kosmos2_jax.inference.requests import (
    CANCELLED,
    END,
    LENGTH,
    STOP,
    Handle,
    Output,
    Piece,
)
from kosmos2_jax.inference.rows import Written
from kosmos2_jax.inference.sampling import SamplingConfig


class OutputStream:
    """Cuts what rows hold into pieces, and ends at stop strings.

    Attributes:
      handle: of the request.
      number: which output of its prompt this is.
      ended: whether the last piece was delivered.
    """

    def __init__(self, handle: Handle, number: int, vocabulary: Kosmos2Vocabulary) -> None:
        """Of a request that was accepted."""
        self.handle, self.number, self.ended = handle, number, False
        self._vocabulary = vocabulary
        self._ids: list[int] = []  # with `</s>`
        self._log_probs: list[float] = []
        self._nearby: list[float] = []
        self._score: float | None = None
        self._sent_ids = 0  # of those without `</s>`
        self._sent_text = 0

    @property
    def prompt(self) -> Prompt:
        """What is continued."""
        return self.handle.request.prompt

    @property
    def sampling(self) -> SamplingConfig:
        """How."""
        return self.handle.request.sampling

    def receive(self, written: Written, row: int) -> None:
        """Delivers what a row holds more than before."""
        new = slice(self.handle.prompt_length + len(self._ids), int(written.lengths[row]))
        self._ids += written.history[row, new].tolist()
        self._log_probs += written.log_probs[row, new].tolist()
        self._nearby += written.nearby_log_probs[row, new].tolist()
        reason = None
        if written.finished[row]:
            reason = self._reason()
        self._send(reason)

    def receive_beam(
        self,
        tokens: Sequence[int],
        log_probs: Sequence[float],
        nearby: Sequence[float],
        score: float,
    ) -> None:
        """Delivers an output of beam search, whole."""
        self._ids, self._log_probs, self._nearby = list(tokens), list(log_probs), list(nearby)
        self._score = score
        self._send(self._reason())

    def cancel(self) -> None:
        """Ends the output as it is."""
        self._send(CANCELLED)

    def _reason(self) -> str:
        """Why an output ended that is finished."""
        last = self._ids[-1] if self._ids else None
        if last == self._vocabulary.eos_id:
            return END
        return STOP if last in self.sampling.stop_ids else LENGTH

    def _send(self, reason: str | None) -> None:
        kept = [i for i, token in enumerate(self._ids) if token != self._vocabulary.eos_id]
        ids = [self._ids[i] for i in kept]
        markup = self._vocabulary.decode(ids)
        count = len(ids)
        stop = _first_of(self.sampling.stop_strings, markup)
        if stop is not None:
            reason = STOP if reason != CANCELLED else reason
            markup, count = markup[:stop], self._tokens_within(ids, stop)
        if reason is None:
            safe = len(markup) - _held_back(self.sampling.stop_strings, markup)
            if safe < len(markup):
                markup, count = markup[:safe], self._tokens_within(ids, safe)
        log_probs = tuple(self._log_probs[i] for i in kept[:count])
        piece = Piece(
            self.number,
            markup[self._sent_text :],
            tuple(ids[self._sent_ids : count]),
            log_probs[self._sent_ids :],
            reason,
        )
        self._sent_ids, self._sent_text = count, len(markup)
        if reason is not None:
            self.ended = True
            nearby = tuple(self._nearby[i] for i in kept[:count])
            output = Output(tuple(ids[:count]), log_probs, nearby, reason, markup, self._score)
            self.handle.put(piece, output)
        elif piece.ids or piece.markup:
            self.handle.put(piece)

    def _tokens_within(self, ids: Sequence[int], length: int) -> int:
        """How many of the first tokens are within so many characters of text."""
        count = len(ids)
        while count and len(self._vocabulary.decode(ids[:count])) > length:
            count -= 1
        return count


def _first_of(strings: Sequence[str], text: str) -> int | None:
    """Where the first of the strings begins, if any is in the text."""
    places = [text.find(string) for string in strings]
    return min((place for place in places if place >= 0), default=None)


def _held_back(strings: Sequence[str], text: str) -> int:
    """Length of the longest end of the text with which a string might begin."""
    return max(
        (
            size
            for string in strings
            for size in range(1, min(len(string), len(text)) + 1)
            if text.endswith(string[:size])
        ),
        default=0,
    )
