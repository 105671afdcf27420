"""Phrases with boxes as people type them."""

from __future__ import annotations

import pytest

from kosmos2_jax.errors import BoxError
from kosmos2_jax.grounding.links import read_box, read_links


def test_phrases_with_boxes():
    question = read_links("Is [the dog](0.1, 0.2,0.5,0.9) near [a cat](0,0,1,1)? (no)")
    assert question.text == "Is the dog near a cat? (no)"
    assert [(s.text, question.text[s.start : s.end], s.boxes[0]) for s in question.spans] == [
        ("the dog", "the dog", (0.1, 0.2, 0.5, 0.9)), ("a cat", "a cat", (0, 0, 1, 1)),
    ]  # fmt: skip


def test_a_box_for_brackets_without_numbers():
    line = "What is [it], or [that](0,0,1,1)?"
    assert read_links(line).text == "What is [it], or that?"
    told = read_links(line, (0.1, 0.2, 0.5, 0.9))
    assert told.text == "What is it, or that?"
    assert [span.boxes[0] for span in told.spans] == [(0.1, 0.2, 0.5, 0.9), (0, 0, 1, 1)]


@pytest.mark.parametrize("text", ["here", "1,2,3", "", "0,0,1,x", "0,0,1,1,1"])
def test_no_box(text: str):
    with pytest.raises(BoxError, match="four numbers"):
        read_box(text)
    with pytest.raises(BoxError, match="four numbers"):
        read_links(f"[it]({text})")
