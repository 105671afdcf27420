"""Captions and referring expressions are true, and referring expressions of one object only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kosmos2_jax.data import sprites
from kosmos2_jax.data.scene_language import (
    COUNTS,
    PLURALS,
    RELATIONS,
    caption,
    inventory,
    parse_expression,
    referring_expression,
    resolve,
)
from kosmos2_jax.data.scenes import SIZES, Scene, SceneObject, draw_scene, scene_rng
from kosmos2_jax.grounding.boxes import Box


def _object(words: str, x: int, y: int, side: int = 16) -> SceneObject:
    size, texture, color, shape = words.split()
    return SceneObject(shape, color, size, texture, Box(*np.array([x, y, x + side, y + side]) / 64))


SCENE = (
    _object("small plain red star", 0, 24),
    _object("small striped red star", 40, 24),
    _object("large plain blue square", 20, 20, 18),
    _object("small dotted green circle", 22, 46),
)


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("the star", (0, 1)),
        ("the red star", (0, 1)),
        ("the striped star", (1,)),
        ("the small plain red star", (0,)),
        ("the large star", ()),
        ("the small red star left of the blue square", (0,)),
        ("the star right of the blue square", (1,)),
        ("the square above the green circle", (2,)),
        ("the circle below the square", (3,)),
        ("the star left of the circle", (0,)),
        ("the circle left of the red star", ()),  # which red star?
        ("the leftmost star", (0,)),
        ("the rightmost red star", (1,)),
        ("the topmost star", ()),  # both are as high
        ("the bottommost circle", (3,)),
    ],
)
def test_resolving_by_hand(expression: str, found: tuple[int, ...]) -> None:
    assert resolve(expression, SCENE) == found


@pytest.mark.parametrize(
    "text",
    [
        "red star",
        "the",
        "the pink star",
        "the red green star",
        "the star left of the leftmost square",
        "the leftmost topmost star",
        "the star beside the square",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="star|the"):
        parse_expression(text)


def _scenes(count: int, split: str = "test") -> list[tuple[Scene, np.random.Generator]]:
    result = []
    for index in range(count):
        rng = scene_rng(1, split, index)
        result.append((draw_scene(rng, split=split), rng))
    return result


def test_expressions_are_true_of_their_target_alone() -> None:
    kinds: Counter[str] = Counter()
    for scene, rng in _scenes(2000):
        for target in range(len(scene.objects)):
            expression = referring_expression(scene, rng, target)
            if expression is None:
                kinds["none"] += 1
                continue
            assert resolve(expression, scene.objects) == (target,), expression
            parsed = parse_expression(expression)
            assert str(parsed) == expression
            kinds["relation" if parsed.relation else "extreme" if parsed.extreme else "plain"] += 1
            for relation in RELATIONS:
                kinds[relation] += relation in expression
    total = kinds["relation"] + kinds["extreme"] + kinds["plain"]
    assert kinds["none"] < total / 500
    assert kinds["plain"] > total / 2
    assert all(kinds[relation] > total / 60 for relation in RELATIONS)


def test_relations_are_far_from_ties() -> None:
    for scene, rng in _scenes(500):
        for target, item in enumerate(scene.objects):
            expression = referring_expression(scene, rng, target, relation_rate=1.0)
            parsed = parse_expression(expression) if expression else None
            if parsed is None or parsed.anchor is None:
                continue
            (anchor,) = resolve(f"the {parsed.anchor}", scene.objects)
            other = scene.objects[anchor]
            dx = abs(item.box.x1 + item.box.x2 - other.box.x1 - other.box.x2) / 2
            dy = abs(item.box.y1 + item.box.y2 - other.box.y1 - other.box.y2) / 2
            assert (dx if "of" in (parsed.relation or "") else dy) >= 1 / 8


def test_look_alikes_are_told_apart_by_place() -> None:
    twins = (_object("small plain red star", 0, 0), _object("small plain red star", 40, 2))
    scene = Scene(np.zeros((64, 64, 3), np.uint8), twins, "flat")
    said = {referring_expression(scene, np.random.default_rng(i), 0) for i in range(50)}
    assert said == {
        "the leftmost star",
        "the leftmost red star",
        "the leftmost plain star",
        "the leftmost small star",
    }


def test_the_middle_one_of_look_alikes_has_no_name() -> None:
    row = tuple(_object("small plain red star", x, 0) for x in (0, 20, 40))
    scene = Scene(np.zeros((64, 64, 3), np.uint8), row, "flat")
    assert referring_expression(scene, np.random.default_rng(0), 1) is None


def test_captions_are_true_and_complete() -> None:
    singular = {plural: shape for shape, plural in PLURALS.items()}
    sizes: Counter[int] = Counter()
    for scene, rng in _scenes(1500):
        said = caption(scene, rng)
        assert said.text.startswith("An image of ") and said.text.endswith(".")
        named: list[Box] = []
        for span in said.spans:
            assert said.text[span.start : span.end] == span.text
            count, *adjectives, noun = span.text.split()
            number = 1 if count in ("a", "an") else COUNTS.index(count)
            assert number == len(span.boxes)
            assert (count == "an") == (number == 1 and (adjectives or [noun])[0][0] in "aeiou")
            items = [item for item in scene.objects if item.box in span.boxes]
            assert len(items) == number
            for item in items:
                assert item.shape == (noun if number == 1 else singular[noun])
                for word in adjectives:
                    assert word in (item.size, item.texture, item.color)
            named += span.boxes
            sizes[number] += 1
        assert sorted(named) == sorted(item.box for item in scene.objects)
        assert len({span.text for span in said.spans}) == len(said.spans)
        firsts = [span.boxes[0] for span in said.spans]
        assert firsts == sorted(firsts)
    assert sizes[1] > 1000 and sizes[2] > 200 and sizes[3] > 10


def test_relations_in_captions_hold() -> None:
    found = 0
    for scene, rng in _scenes(1500):
        said = caption(scene, rng)
        if len(said.spans) == 2:
            first, second = said.spans
            joint = said.text[first.end : second.start].strip()
            if joint in RELATIONS:
                (a,), (b,) = first.boxes, second.boxes
                dx, dy = (b.x1 + b.x2 - a.x1 - a.x2), (b.y1 + b.y2 - a.y1 - a.y2)
                by_relation = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}
                assert by_relation[joint] == max(by_relation.values())
                found += 1
    assert found > 100


def test_words_do_not_mean_two_things() -> None:
    words = [*sprites.COLORS, *sprites.SHAPES, *sprites.TEXTURES, *SIZES, *PLURALS.values()]
    assert len(set(words)) == len(words)


def test_an_inventory_names_every_object_once_with_all_that_is_true_of_it() -> None:
    for index in range(200):
        scene = draw_scene(scene_rng(1, "train", index))
        said = inventory(scene)
        assert sorted(span.boxes[0] for span in said.spans) == sorted(o.box for o in scene.objects)
        for span in said.spans:
            (item,) = [o for o in scene.objects if o.box == span.boxes[0]]
            assert span.text.split() == ["a", item.size, item.texture, item.color, item.shape]
            assert said.text[span.start : span.end] == span.text
