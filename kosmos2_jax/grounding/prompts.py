"""What to write after the picture for each task (spec section 3.6, the model card)."""

from __future__ import annotations

from collections.abc import Sequence

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.markup import render_object
from kosmos2_jax.grounding.tags import GROUNDING, PHRASE_CLOSE, PHRASE_OPEN, require_no_tags


def describe(detailed: bool = False) -> str:
    """Returns the prompt for a grounded caption, brief or in detail."""
    return GROUNDING + ("Describe this image in detail:" if detailed else "An image of")


def ground(phrase: str) -> str:
    """Returns the prompt that asks where `phrase` is.

    Raises:
      MarkupError: the phrase is empty or holds a tag or "<", which no phrase with a box may.
    """
    phrase = require_no_tags(phrase, "The phrase").strip()
    if not phrase:
        raise MarkupError("The phrase is empty: say what to look for.")
    if "<" in phrase:
        raise MarkupError("The phrase must not hold '<': it would be read as a tag.")
    return f"{GROUNDING}{PHRASE_OPEN} {phrase}{PHRASE_CLOSE}"


def refer(box: Sequence[float], grid_size: int) -> str:
    """Returns the prompt that asks what is in `box` (normalised to 0..1).

    Raises:
      BoxError: the box is malformed.
    """
    subject = f"{PHRASE_OPEN} It{PHRASE_CLOSE}"
    return f"{GROUNDING}{subject}{render_object([box], grid_size)} is"


def question_text(question: str) -> str:
    """Returns the text that asks a question; tags in it are left to whoever encodes it.

    Raises:
      MarkupError: the question is empty.
    """
    question = question.strip()
    if not question:
        raise MarkupError("The question is empty: write what you want to know.")
    return f"Question: {question} Answer:"


def ask(question: str, grounded: bool = False) -> str:
    """Returns the prompt for a question, answered with boxes if `grounded`.

    Raises:
      MarkupError: the question is empty or holds a tag.
    """
    prompt = question_text(require_no_tags(question, "The question"))
    return f"{GROUNDING} {prompt}" if grounded else prompt
