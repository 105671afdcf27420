"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator

from kosmos2_jax.inference.prompt_batch import Prompt
from kosmos2_jax.inference.sampling import SamplingConfig

# Why an output ended: `</s>`; a stop id or string; as long as allowed; `Handle.cancel`.
END, STOP, LENGTH, CANCELLED = "end", "stop", "length", "cancelled"


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how to write on after it.

    Attributes:
      prompt: see `kosmos2_jax.inference.prompt_batch.build_prompt`.
      sampling: how.
    """

    prompt: Prompt
    sampling: SamplingConfig = SamplingConfig()


@dataclasses.dataclass(frozen=True)
class Output:
    """What was written after a prompt.

    Attributes:
      ids: new tokens without `</s>` and without what a stop string cuts off.
      log_probs: of each of them, see `kosmos2_jax.inference.sampling.Choice`.
      nearby_log_probs: likewise.
      finish_reason: "end" at `</s>`, "stop" at a stop id or string, "length" at its longest
        length, "cancelled".
      markup: the tokens as text with tags, up to the stop string.
      score: of the beam, see `kosmos2_jax.inference.beam_search`; None without beams.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    nearby_log_probs: tuple[float, ...]
    finish_reason: str
    markup: str
    score: float | None = None

    @property
    def complete(self) -> bool:
        """Whether it ended of itself."""
        return self.finish_reason in (END, STOP)


@dataclasses.dataclass(frozen=True)
class Piece:
    """What an output has grown by.

    Attributes:
      output: number of the output of the prompt, from 0.
      markup: new text with tags.
      ids: new tokens, `</s>` left out.
      log_probs: of them.
      finish_reason: as of `Output`; None before the last piece.
    """

    output: int
    markup: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str | None = None


class Handle:
    """A request that was submitted: iterate over it for pieces, or wait for `result`.

    Attributes:
      request: what was submitted.
      cancelled: whether `cancel` was called.
    """

    def __init__(self, request: Request) -> None:
        """Made by `Engine.submit`."""
        self.request = request
        self.cancelled = False
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._listener: Callable[[Piece | None], None] | None = None
        self._delivery = threading.Lock()  # so that a listener gets pieces in order
        self._outputs: dict[int, Output] = {}
        self._failure: BaseException | None = None
        self._done = threading.Event()

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt, slots of pictures included."""
        return len(self.request.prompt.ids)

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._done.is_set()

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they are written, those of several outputs mixed; can be done once.

        Raises:
          Exception: whatever stopped the engine.
        """
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._raise_failure()

    def listen(self, listener: Callable[[Piece | None], None]) -> None:
        """Instead of iterating: calls `listener` with each piece, and with None at the end.

        It is called here with what has come already, then by the engine's thread, which it must
        not keep waiting.
        """
        with self._delivery:
            while not self._pieces.empty():
                listener(self._pieces.get())
            self._listener = listener

    def result(self, timeout: float | None = None) -> tuple[Output, ...]:
        """Waits for all outputs; they come in order.

        Args:
          timeout: in seconds; None to wait for ever.

        Raises:
          TimeoutError: the time is over; the request goes on.
          Exception: whatever stopped the engine.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no result after {timeout:g} seconds")
        self._raise_failure()
        return tuple(self._outputs[number] for number in sorted(self._outputs))

    def cancel(self) -> None:
        """Stops the request soon; its outputs keep what is written by then."""
        self.cancelled = True

    def put(self, piece: Piece, output: Output | None = None) -> None:
        """Delivers a piece, with the whole output after its last one. For the engine."""
        self._deliver(piece)
        if output is not None:
            self._outputs[piece.output] = output
        if len(self._outputs) == self.request.sampling.num_outputs:
            self._close()

    def fail(self, failure: BaseException) -> None:
        """Ends the request by an exception. For the engine."""
        self._failure = failure
        self._close()

    def _close(self) -> None:
        self._done.set()
        self._deliver(None)

    def _deliver(self, piece: Piece | None) -> None:
        with self._delivery:
            (self._listener or self._pieces.put)(piece)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
