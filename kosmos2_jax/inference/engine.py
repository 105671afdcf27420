"""The engine: a queue of requests over a fixed number of rows (continuous batching).

    engine = Engine(config, params, vocabulary, rows=8)
    handle = engine.submit(Request(prompt, SamplingConfig(temperature=0.7, top_p=0.9, seed=1)))
    for piece in handle:            # as it is written
        print(piece.markup, end="")
    (output,) = handle.result()     # ids, log-probabilities, why it ended
    outputs = engine.generate([Request(a), Request(b)])   # or many, and wait

A background thread reads prompts in buckets of lengths, puts them into free rows and writes some
tokens in every row at a time; a row that has ended takes the next request. Every request has its
own settings. Its output does not depend on what shares its batch: nothing is shared between rows,
random numbers follow from the request's seed. (Floating-point sums are those of the shapes at
hand: a cache that has grown for a longer row may change the last bit of a logit.)
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import BusyError, ConfigError, ImageError, MarkupError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.beam_search import beam_search
from kosmos2_jax.inference.grammar import GrammarState, make_grammar, state_after
from kosmos2_jax.inference.output_stream import OutputStream
from kosmos2_jax.inference.prompt_batch import (
    Prompt,
    batch_prompts,
    bucket_length,
    check_length,
)
from kosmos2_jax.inference.requests import Handle, Output, Request
from kosmos2_jax.inference.rows import Rows
from kosmos2_jax.ranges import COUNT, check_ranges

CACHE_LENGTHS = (128, 256, 512, 1024, 2048)


class Engine:
    """Writes on after prompts, many at a time.

    Attributes:
      config: of the model.
      vocabulary: of the model.
    """

    def __init__(
        self,
        config: Kosmos2Config,
        params: Any,
        vocabulary: Kosmos2Vocabulary,
        *,
        rows: int = 8,
        cache_lengths: Sequence[int] = CACHE_LENGTHS,
        prefill_rows: Sequence[int] = (1,),
        steps: int = 8,
        max_waiting: int = 1024,
    ) -> None:
        """Takes a model; the thread starts with the first request.

        Args:
          config: of the model; its `decoder.max_length` limits prompt and output together.
          params: of the model.
          vocabulary: of the model.
          rows: outputs that are written at the same time.
          cache_lengths: lengths of the cache in tokens, a program is compiled for each that is
            needed; it grows as rows do. One that holds the longest sequence is added.
          prefill_rows: numbers of prompts of like length that may be read in one pass. More than
            one at a time pays on accelerators; one alone makes a prompt's numbers the same bit by
            bit whatever comes with it.
          steps: tokens of each row between two looks at the queue. Pieces are of at most so many.
          max_waiting: outputs that may wait for a row.

        Raises:
          ConfigError: a number is less than 1.
        """
        numbers = {
            "rows": rows,
            "steps": steps,
            "max_waiting": max_waiting,
            "prefill_rows": min(prefill_rows, default=0),
        }
        check_ranges(dict.fromkeys(numbers, COUNT), numbers)
        self.config, self.vocabulary = config, vocabulary
        self._params = params
        self._grammar = None
        if vocabulary.grid_size:
            self._grammar = make_grammar(vocabulary, config.decoder.padded_vocab_size)
        longest = bucket_length(config.decoder.max_length)
        lengths = [*sorted(length for length in cache_lengths if length < longest), longest]
        self._make_rows = lambda: Rows(config, params, rows, lengths, steps, self._grammar)
        # One at a time is always possible.
        self._prefill_rows = sorted({1, *prefill_rows}, reverse=True)
        self._max_waiting = max_waiting
        self._free = list(range(rows))
        self._running: dict[int, OutputStream] = {}
        self._waiting: collections.deque[OutputStream] = collections.deque()
        self._taken: list[OutputStream] = []  # out of the queue in this round
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Outputs that wait for a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Outputs that are being written."""
        return len(self._running)

    @property
    def failed(self) -> bool:
        """Whether an error has ended the thread, which every request then gets."""
        return self._failure is not None

    def submit(self, request: Request, *, wait: bool = False) -> Handle:
        """Puts a request into the queue.

        Args:
          request: what to do.
          wait: if the queue is full, wait until it is not.

        Raises:
          BusyError: the queue is full.
          MarkupError: the prompt is empty or too long, or given vectors have another width.
          ImageError: a picture of it has another size than the model's.
          ConfigError: its settings ask for what this model cannot do, or the engine is closed.
        """
        self._check(request)
        handle, vocabulary = Handle(request), self.vocabulary
        outputs = [OutputStream(handle, n, vocabulary) for n in range(request.sampling.num_outputs)]
        with self._wake:
            while wait and self._is_full(len(outputs)) and not self._closed:
                self._wake.wait()
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise ConfigError("the engine is closed: make another one")
            if self._is_full(len(outputs)):
                raise BusyError(
                    f"{len(self._waiting)} outputs wait already and at most {self._max_waiting} "
                    "may: try again later"
                )
            self._waiting.extend(outputs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
            self._wake.notify_all()
        return handle

    def generate(self, requests: Iterable[Request]) -> list[tuple[Output, ...]]:
        """Waits for the outputs of all requests, in their order; raises as `submit`."""
        handles: list[Handle] = []
        try:
            handles.extend(self.submit(request, wait=True) for request in requests)
            return [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def close(self) -> None:
        """Cancels what is waiting or being written and ends the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_full(self, more: int) -> bool:
        return bool(self._waiting) and len(self._waiting) + more > self._max_waiting

    def _check(self, request: Request) -> None:
        prompt, sampling = request.prompt, request.sampling
        if len(prompt.ids) < 2:
            raise MarkupError("The prompt is empty: write something, or add a picture.")
        check_length(prompt, self.config.decoder.max_length - 1)
        size = self.config.vision.image_size
        for image in prompt.images:
            if image.shape != (size, size, 3):
                raise ImageError(
                    f"A picture has the shape {list(image.shape)}, the model takes "
                    f"[{size}, {size}, 3]: resize it."
                )
        width = self.config.decoder.hidden_size
        if prompt.embeddings is not None and prompt.embeddings.shape[1:] != (width,):
            raise MarkupError(
                f"Given vectors have the shape {list(prompt.embeddings.shape)}, the model takes "
                f"[number, {width}]."
            )
        if sampling.grammar and self._grammar is None:
            raise ConfigError(
                "this model has no location tokens, so there is no grammar of boxes: leave "
                "grammar off"
            )

    # The thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            # Accelerators' default is faster but does not give the reference's outputs (T-41).
            with jax.default_matmul_precision("highest"):
                rows = self._make_rows()
                while self._next(rows):
                    pass
        except BaseException as failure:  # every client must learn of it
            with self._wake:
                self._failure, self._closed = failure, True
                for output in (*self._running.values(), *self._taken, *self._waiting):
                    output.handle.fail(failure)
                self._wake.notify_all()

    def _next(self, rows: Rows) -> bool:
        """One round: takes in what there is place for, writes, delivers. False at the end."""
        with self._wake:
            while not (self._waiting or self._running or self._closed):
                rows.clear()
                self._wake.wait()
            if self._closed:
                for output in (*self._running.values(), *self._waiting):
                    output.cancel()
                return False
            self._taken = self._take()
            self._wake.notify_all()
        self._admit(rows, self._taken)
        if self._running:
            self._deliver(rows)
        if self._running:
            rows.write()
        return True

    def _take(self) -> list[OutputStream]:
        """The outputs that get the free rows, first come, first served."""
        for output in [output for output in self._waiting if output.handle.cancelled]:
            self._waiting.remove(output)
            output.cancel()
        taken: list[OutputStream] = []
        free = len(self._free)
        while self._waiting:
            free -= self._waiting[0].sampling.num_beams == 1  # beams have their own cache
            if free < 0:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _admit(self, rows: Rows, taken: list[OutputStream]) -> None:
        """Reads prompts of like length and number of pictures together, each prompt once."""
        by_handle: dict[int, list[OutputStream]] = {}
        for output in taken:
            by_handle.setdefault(id(output.handle), []).append(output)
        for handle, outputs in list(by_handle.items()):
            if outputs[0].sampling.num_beams > 1:
                self._search(outputs)
                del by_handle[handle]
        groups: dict[tuple[int, int, int], list[list[OutputStream]]] = {}
        for outputs in by_handle.values():
            prompt = outputs[0].prompt
            given = 0 if prompt.embeddings is None else len(prompt.embeddings)
            key = bucket_length(len(prompt.ids)), len(prompt.images), given
            groups.setdefault(key, []).append(outputs)
        for members in groups.values():
            while members:
                size = next(size for size in self._prefill_rows if size <= len(members))
                self._admit_together(rows, members[:size])
                del members[:size]

    def _admit_together(self, rows: Rows, together: list[list[OutputStream]]) -> None:
        prompts = [outputs[0].prompt for outputs in together]
        prefilled = rows.prefill(prompts)
        for number, (prompt, outputs) in enumerate(zip(prompts, together, strict=True)):
            state = self._grammar_state(prompt)
            for output in outputs:
                row = self._free.pop()
                rows.admit(row, prompt, prefilled, number, output.sampling, output.number, state)
                self._running[row] = output

    def _search(self, outputs: list[OutputStream]) -> None:
        """Beam search, from end to end; the rows wait meanwhile."""
        prompt, sampling = outputs[0].prompt, outputs[0].sampling
        batch = batch_prompts([prompt], max_length=self.config.decoder.max_length - 1)
        state = self._grammar_state(prompt)
        found = jax.device_get(
            beam_search(self.config, self._params, batch, sampling, self._grammar, state)
        )
        for output in outputs:
            length = found.lengths[0, output.number]
            written = (
                values[0, output.number, :length].tolist()
                for values in (found.tokens, found.log_probs, found.nearby_log_probs)
            )
            output.receive_beam(*written, float(found.scores[0, output.number]))

    def _grammar_state(self, prompt: Prompt) -> GrammarState | None:
        if self._grammar is None:
            return None
        return state_after(self._grammar, self.vocabulary, prompt.ids)

    def _deliver(self, rows: Rows) -> None:
        """Hands on what is new, frees the rows of what has ended, and makes place for more."""
        written = rows.read()
        early = []
        for row, output in list(self._running.items()):
            output.receive(written, row)
            if output.handle.cancelled and not output.ended:
                output.cancel()
            if output.ended:
                del self._running[row]
                self._free.append(row)
                if not written.finished[row]:
                    early.append(row)
        if early:
            rows.finish(early)
        if self._running:
            rows.require(int(max(written.lengths[row] for row in self._running)))
