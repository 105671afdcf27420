"""Prompts of the model card and what they refuse."""

from __future__ import annotations

import pytest

from kosmos2_jax.errors import BoxError, MarkupError
from kosmos2_jax.grounding import prompts
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary


def test_prompts_of_the_model_card() -> None:
    box = (0.390625, 0.046875, 0.984375, 0.828125)
    assert prompts.describe() == "<grounding>An image of"
    assert prompts.describe(detailed=True) == "<grounding>Describe this image in detail:"
    assert prompts.ground("a snowman") == "<grounding><phrase> a snowman</phrase>"
    assert prompts.refer(box, 32) == (
        "<grounding><phrase> It</phrase><object><patch_index_0044><patch_index_0863></object> is"
    )
    question = "What is special about this image?"
    assert prompts.ask(question) == f"Question: {question} Answer:"
    assert prompts.ask(question, grounded=True) == f"<grounding> Question: {question} Answer:"


def test_spaces_around_are_dropped() -> None:
    assert prompts.ground("  a dog\n") == prompts.ground("a dog")
    assert prompts.ask(" why? ") == prompts.ask("why?")


@pytest.mark.parametrize("text", ["<phrase> a", "a</phrase>", "<patch_index_0001>", "</image>"])
def test_tags_inside_are_refused(text: str) -> None:
    with pytest.raises(MarkupError, match="The phrase must not hold the tag"):
        prompts.ground(text)
    with pytest.raises(MarkupError, match="The question must not hold the tag"):
        prompts.ask(text, grounded=True)


def test_empty_and_impossible_input() -> None:
    with pytest.raises(MarkupError, match="phrase is empty"):
        prompts.ground("  ")
    with pytest.raises(MarkupError, match="question is empty"):
        prompts.ask("")
    with pytest.raises(MarkupError, match="must not hold '<'"):
        prompts.ground("a < b")
    assert "Is 1 < 2?" in prompts.ask("Is 1 < 2?")
    with pytest.raises(BoxError, match="reversed"):
        prompts.refer((0.9, 0, 0.1, 1), 32)


def test_ids_of_prompts(vocabulary: Kosmos2Vocabulary) -> None:
    assert vocabulary.encode_markup(prompts.describe()) == [64012, 712, 1648, 9]
    detailed = vocabulary.encode_markup(prompts.describe(detailed=True))
    assert detailed == [64012, 34645, 247, 38, 1648, 12, 3391, 55]
    answer = vocabulary.encode_markup(prompts.ask("x"))[-2:]
    assert answer == [20032, 55]  # what SEED-Bench looks for (trap T-45)
    hat = f"<grounding>A man in {prompts.ground('a blue hard hat').removeprefix('<grounding>')}"
    expected = [64012, 95, 242, 12, 64007, 10, 1486, 354, 3958, 64008]
    assert vocabulary.encode_markup(hat) == expected
