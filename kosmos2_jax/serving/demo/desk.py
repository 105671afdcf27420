"""What the page's buttons do: each task is a stream of views of what is written."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from kosmos2_jax.errors import ImageError, MarkupError
from kosmos2_jax.grounding.grounded_text import GroundedText
from kosmos2_jax.grounding.links import read_box, read_links
from kosmos2_jax.inference.live_text import LiveText
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.questions import Question, Turn
from kosmos2_jax.inference.requests import Handle
from kosmos2_jax.inference.results import as_said, with_subject
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.demo.view import View, entry
from kosmos2_jax.serving.settings import ServerSettings
from kosmos2_jax.vision.preprocessing import load_image

Views = Iterator[list[View]]

MODEL, USER = "Kosmos-2", "You"

_WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Visit:
    """Who asks, about what, and how it is to be answered.

    Attributes:
      session: name of the page that is open; a new question of it ends the one before.
      picture: encoded as it was chosen; None where there is none yet.
      box: what stands in the box's field, "" for no box.
      sampling: how to answer.
    """

    session: str
    picture: bytes | None
    box: str
    sampling: SamplingConfig

    def image(self) -> Image.Image:
        """The picture.

        Raises:
          ImageError: there is none, it is broken or too large.
        """
        if self.picture is None:
            raise ImageError("There is no picture: choose one first.")
        return open_picture(self.picture)


def open_picture(encoded: bytes) -> Image.Image:
    """Raises `ImageError` where it is no picture, broken, or larger than servers take."""
    return load_image(encoded, ServerSettings.max_pixels)


class Desk:
    """Answers the pages that are open; views are lists of `kosmos2_jax.serving.demo.view.entry`.

    All methods raise `Kosmos2Error` for what a user can mend.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Takes the model, whose engine may have other clients too."""
        self.predictor = predictor
        self._newest: dict[str, object] = {}  # what each page waits for
        self._lock = threading.Lock()

    def describe(self, visit: Visit, detailed: bool) -> Views:
        """What is in the picture."""
        questions = self.predictor.questions
        yield from self._write(visit, questions.describe(visit.image(), detailed, visit.sampling))

    def find(self, visit: Visit, phrase: str, count: int) -> Views:
        """Where the phrase is; with a `count` of more than 1, its most likely boxes."""
        image = visit.image()
        if count == 1:
            yield from self._write(
                visit, self.predictor.questions.ground(image, phrase, visit.sampling)
            )
            return
        self._begin(visit.session, token := object())
        yield [entry(GroundedText(phrase), MODEL, busy=True)]
        found = self.predictor.top_boxes(image, phrase, count)
        if self._newest.get(visit.session) is token:
            yield [entry(found, MODEL)]

    def refer(self, visit: Visit) -> Views:
        """What is in the box."""
        if not visit.box.strip():
            raise MarkupError("There is no box: draw one on the picture.")
        box = read_box(visit.box)
        question = self.predictor.questions.refer(visit.image(), box, visit.sampling)
        yield from self._write(visit, question, lambda answer: with_subject(answer, box))

    def ask(self, visit: Visit, question: str, grounded: bool) -> Views:
        """The answer to a question; phrases in [brackets] stand for the box."""
        asked = _read_question(visit, question)
        yield from self._write(
            visit,
            self.predictor.questions.ask(visit.image(), asked, grounded, visit.sampling),
            before=[entry(asked, USER)],
        )

    def chat(
        self, visit: Visit, turns: tuple[Turn, ...], question: str, grounded: bool
    ) -> Iterator[tuple[list[View], tuple[Turn, ...]]]:
        """The answer with all that was said before, and the turns to go on with.

        An answer is read again with the next question, so that its markup must be well-formed:
        the grammar is on, and of several outputs only one is written.
        """
        asked = _read_question(visit, question)
        turn = Turn(asked, images=() if turns else (visit.image(),))
        sampling = dataclasses.replace(
            visit.sampling, num_outputs=1, grammar=self.predictor.vocabulary.grid_size > 0
        )
        before = [*conversation(turns), entry(asked, USER)]
        answers: list[GroundedText] = []
        chat = self.predictor.questions.chat([*turns, turn], grounded, sampling)
        for views in self._write(visit, chat, keep=answers.append, before=before):
            if answers:
                yield views, (*turns, dataclasses.replace(turn, answer=as_said(answers[0])))
            else:
                yield views, turns

    def stop(self, session: str) -> None:
        """Ends what is being written for a page; what there is of it stays."""
        with self._lock:
            work = self._newest.get(session)
        if isinstance(work, Handle):
            work.cancel()

    def leave(self, session: str) -> None:
        """Forgets a page that was closed."""
        self.stop(session)
        with self._lock:
            self._newest.pop(session, None)

    def _write(
        self,
        visit: Visit,
        question: Question,
        finish: Callable[[GroundedText], GroundedText] = lambda answer: answer,
        *,
        keep: Callable[[GroundedText], None] = lambda answer: None,
        before: Sequence[View] = (),
    ) -> Views:
        """Views of the outputs as they grow.

        Args:
          visit: whose question it is; a newer one of the page ends the views.
          question: what is asked.
          finish: makes of an answer what is shown.
          keep: gets the first answer when it is whole.
          before: entries that stand above the answers.
        """
        handle = self.predictor.stream(question)
        self._begin(visit.session, handle)
        count = handle.request.sampling.num_outputs
        names = [f"{MODEL}, {n + 1} of {count}" for n in range(count)] if count > 1 else [MODEL]
        live = [LiveText(question) for _ in names]
        growing = [entry(GroundedText(""), name, busy=True) for name in names]
        try:
            yield [*before, *growing]
            for piece in handle:
                number = piece.output
                live[number].receive(piece)
                text, busy = finish(live[number].so_far()), piece.finish_reason is None
                growing[number] = entry(text, names[number], busy=busy)
                if self._newest.get(visit.session) is handle:
                    yield [*before, *growing]
            answers = [question.read(output) for output in handle.result()]
        finally:
            handle.cancel()  # which changes nothing about what has ended
        if self._newest.get(visit.session) is handle:
            keep(answers[0])
            whole = zip(answers, names, strict=True)
            yield [*before, *(entry(finish(answer), name) for answer, name in whole)]

    def _begin(self, session: str, work: object) -> None:
        """Makes `work` what the page waits for."""
        self.stop(session)
        with self._lock:
            self._newest[session] = work


def conversation(turns: Sequence[Turn]) -> list[View]:
    """Entries of what was said; all turns have answers."""
    entries = []
    for turn in turns:
        entries += [entry(turn.question, USER), entry(turn.answer, MODEL)]
    return entries


def _read_question(visit: Visit, question: str) -> GroundedText:
    box = read_box(visit.box) if visit.box.strip() else None
    asked = read_links(question, box)
    if box is None and read_links(question, _WHOLE).spans != asked.spans:
        raise MarkupError("There is no box for the words in [brackets]: draw one on the picture.")
    if box is not None and not asked.spans:
        unused = "The box is not part of the question: put [brackets] around words to mean it."
        return dataclasses.replace(asked, problems=(unused,))
    return asked
