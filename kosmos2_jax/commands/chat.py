"""`kosmos2 chat`: a conversation on the terminal about pictures."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from kosmos2_jax.commands.terminal import (
    Parser,
    add_checkpoint,
    add_length,
    note,
    read_model,
    status,
)
from kosmos2_jax.errors import Kosmos2Error

if TYPE_CHECKING:
    from PIL import Image

    from kosmos2_jax.grounding.grounded_text import GroundedText
    from kosmos2_jax.inference.predictor import Predictor
    from kosmos2_jax.inference.questions import Turn

_HELP = """\
Ask, and press return. [the dog](0.1,0.2,0.5,0.9) in a question is a phrase with its box.
/image FILE   a picture, which comes before the next question
/clear        forget what was said and shown
/help         this
/quit         or Ctrl-D: end"""


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures to talk about")
    parser.add_argument("--plain", action="store_true", help="answers without the places of things")
    add_checkpoint(parser)
    add_length(parser)


def run(args: argparse.Namespace) -> None:
    """Talks until the end of the input.

    Raises:
      Kosmos2Error: a picture or the model cannot be read.
    """
    from kosmos2_jax.vision.remote import open_image

    images = [open_image(image) for image in args.images]
    with status(f"reading {args.model}") as say:
        predictor = read_model(args, say)
    print("Type /help for what can be done here.")
    talk = _Talk(predictor, images, grounded=not args.plain)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line:
            try:
                talk.take(line)
            except Kosmos2Error as error:
                note(str(error))


class _Talk:
    """What was said so far."""

    def __init__(self, predictor: Predictor, images: list[Image.Image], grounded: bool) -> None:
        self._predictor, self._grounded = predictor, grounded
        self._images = images  # for the next question
        self._turns: list[Turn] = []
        # Answers are read again, so that their markup must be well-formed.
        self._sampling = dataclasses.replace(
            predictor.model.sampling, grammar=predictor.vocabulary.grid_size > 0
        )

    def take(self, line: str) -> None:
        """Does what a line says.

        Raises:
          Kosmos2Error: it cannot be done; what was said before stays.
        """
        from kosmos2_jax.grounding.links import read_links
        from kosmos2_jax.vision.remote import open_image

        word, _, rest = line.partition(" ")
        if word == "/help":
            print(_HELP)
        elif word == "/clear":
            self._turns, self._images = [], []
        elif word == "/image":
            self._images.append(open_image(rest.strip()))
        elif word.startswith("/"):
            raise Kosmos2Error(f"There is no {word}: type /help.")
        else:
            self._ask(read_links(line))

    def _ask(self, question: GroundedText) -> None:
        from kosmos2_jax.inference.live_text import LiveText
        from kosmos2_jax.inference.questions import Turn
        from kosmos2_jax.inference.results import as_said

        turn = Turn(question, images=tuple(self._images))
        asked = self._predictor.questions.chat([*self._turns, turn], self._grounded, self._sampling)
        handle, live = self._predictor.stream(asked), LiveText(asked)
        try:
            for piece in handle:
                print(live.receive(piece), end="", flush=True)
        except KeyboardInterrupt:
            handle.cancel()  # the answer is kept as far as it came
        rest, answer = live.end(handle.result()[0])
        print(rest)
        for span in answer.spans:
            for box, score in zip(span.boxes, span.scores, strict=False):
                shown = ",".join(f"{value:.3f}" for value in box)
                print(f"  [{span.text}]({shown})  score {score:.2f}")
        self._turns.append(Turn(question, as_said(answer), turn.images))
        self._images = []
