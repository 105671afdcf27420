"""Captions composed of labels, and labels found in captions."""

from __future__ import annotations

import pytest

from kosmos2_jax.data.label_captions import LabelledBox, compose_caption, find_labels, plural
from kosmos2_jax.grounding import prompts

BOX = (0.1, 0.2, 0.3, 0.4)


def _phrases(caption: str, annotations: list[list[float]]) -> list[str]:
    return [caption[int(a[0]) : int(a[1])] for a in annotations]


@pytest.mark.parametrize(
    ("labels", "caption", "phrases"),
    [
        (["dog"], "An image of a dog.", ["a dog"]),
        (["apple", "dog"], "An image of an apple and a dog.", ["an apple", "a dog"]),
        (
            ["person", "fire hydrant", "person", "the dog on the left"],
            "An image of two people, a fire hydrant and the dog on the left.",
            ["two people", "two people", "a fire hydrant", "the dog on the left"],
        ),
        (["sheep"] * 12, "An image of 12 sheep.", ["12 sheep"] * 12),
        (["scissors", "bus", "bus"], "An image of scissors and two buses.", None),
        (["the red star"] * 2, "An image of the red star.", ["the red star"] * 2),
    ],
)
def test_composed(labels: list[str], caption: str, phrases: list[str] | None) -> None:
    boxes = [LabelledBox(label, BOX, 0.5) for label in labels]
    found, annotations = compose_caption(boxes)
    assert found == caption
    assert phrases in (None, _phrases(found, annotations))
    assert all(a[2:] == [*BOX, 0.5] for a in annotations)


def test_composed_captions_begin_as_the_prompt_for_them() -> None:
    caption, _ = compose_caption([LabelledBox("dog", BOX)])
    assert caption.startswith(prompts.describe().removeprefix("<grounding>") + " ")
    assert compose_caption([LabelledBox("dog", BOX)], "")[0] == "a dog."


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"), ("dining table", "dining tables"), ("bench", "benches"), ("bus", "buses"),
        ("Person", "People"), ("berry", "berries"), ("toy", "toys"), ("wine glass", "wine glasses"),
        ("skis", "skis"), ("box", "boxes"), ("computer mouse", "computer mice"), ("y", "ys"),
    ],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_labels_in_a_caption() -> None:
    caption = "Two DOGS eat a hot dog beside the dogmatic Person; a dog."
    labels = ["dog", "hot dog", "person", "cat", "dog"]
    annotations, missing = find_labels(caption, [LabelledBox(label, BOX) for label in labels])
    assert [box.label for box in missing] == ["cat"]
    assert _phrases(caption, annotations) == ["Two DOGS", "a hot dog", "Person", "Two DOGS"]
    # A longer label takes its words first.
    caption = "a hot dog and some dogs"
    annotations, missing = find_labels(caption, [LabelledBox(name, BOX) for name in labels[:2]])
    assert _phrases(caption, annotations) == ["some dogs", "a hot dog"] and not missing


def test_a_known_span_needs_no_label() -> None:
    box = LabelledBox("unseen", BOX, 1.0, (2, 5))
    assert find_labels("a dog", [box]) == ([[2, 5, *BOX, 1.0]], [])
