"""What is said about a scene: captions with grounded phrases, and referring expressions.

Every referring expression is true of exactly one object, by the rules of `resolve`, which reads
the words alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.data.scenes import SIZES, Scene, SceneObject
from kosmos2_jax.data.sprites import COLORS, SHAPES, TEXTURES
from kosmos2_jax.grounding.grounded_text import GroundedText, Span

RELATIONS = ("left of", "right of", "above", "below")
EXTREMES = ("leftmost", "rightmost", "topmost", "bottommost")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
COUNTS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# How far, as a share of the picture, centres must differ before one is called further left.
_MARGIN = 1 / 16


@dataclasses.dataclass(frozen=True)
class Description:
    """Attributes of an object; None where nothing is said."""

    shape: str
    color: str | None = None
    texture: str | None = None
    size: str | None = None

    def matches(self, item: SceneObject) -> bool:
        """Whether all that is said is true of `item`."""
        return (
            item.shape == self.shape
            and self.color in (None, item.color)
            and self.texture in (None, item.texture)
            and self.size in (None, item.size)
        )

    def __str__(self) -> str:
        words = (self.size, self.texture, self.color, self.shape)
        return " ".join(word for word in words if word)


@dataclasses.dataclass(frozen=True)
class Expression:
    """ "the [extreme] TARGET [RELATION the ANCHOR]"."""

    target: Description
    extreme: str | None = None
    relation: str | None = None
    anchor: Description | None = None

    def __str__(self) -> str:
        head = f"the {self.extreme} {self.target}" if self.extreme else f"the {self.target}"
        return f"{head} {self.relation} the {self.anchor}" if self.relation else head


def resolve(expression: str, objects: Sequence[SceneObject]) -> tuple[int, ...]:
    """Indices of the objects that a referring expression is true of, judged from its words.

    "left of" compares centres; an anchor or an extreme that is not unique refers to nothing.

    Raises:
      ValueError: words outside the little language of scenes.
    """
    return _resolve(parse_expression(expression), objects)


def parse_expression(text: str) -> Expression:
    """Reads what `str(Expression)` writes. Raises ValueError on anything else."""
    for relation in RELATIONS:
        head, middle, tail = text.partition(f" {relation} ")
        if middle:
            first, anchor = parse_expression(head), parse_expression(tail)
            if first.relation or first.extreme or anchor.relation or anchor.extreme:
                break
            return Expression(first.target, None, relation, anchor.target)
    words = text.split()
    if len(words) < 2 or words[0] != "the" or words[-1] not in SHAPES:
        raise ValueError(f"not a referring expression about a scene: {text!r}")
    found: dict[str, str] = {"shape": words[-1]}
    extreme = None
    kinds = {"size": SIZES, "texture": TEXTURES, "color": tuple(COLORS)}
    for word in words[1:-1]:
        kind = next((kind for kind, known in kinds.items() if word in known), None)
        if kind and kind not in found:
            found[kind] = word
        elif word in EXTREMES and extreme is None:
            extreme = word
        else:
            raise ValueError(f"unexpected word {word!r} in {text!r}")
    return Expression(Description(**found), extreme)


def _resolve(expression: Expression, objects: Sequence[SceneObject]) -> tuple[int, ...]:
    indices = [i for i, item in enumerate(objects) if expression.target.matches(item)]
    if expression.anchor is not None and expression.relation is not None:
        anchors = [i for i, item in enumerate(objects) if expression.anchor.matches(item)]
        if len(anchors) != 1:
            return ()
        anchor = objects[anchors[0]]
        indices = [i for i in indices if _further(expression.relation, objects[i], anchor) > 0]
    elif expression.extreme is not None:
        relation = RELATIONS[EXTREMES.index(expression.extreme)]
        indices = [
            i
            for i in indices
            if all(_further(relation, objects[i], objects[k]) > 0 for k in indices if k != i)
        ]
    return tuple(indices)


def _further(relation: str, item: SceneObject, other: SceneObject) -> float:
    """By how much the centre of `item` lies on the named side of the centre of `other`."""
    across = (other.box.x1 + other.box.x2 - item.box.x1 - item.box.x2) / 2
    down = (other.box.y1 + other.box.y2 - item.box.y1 - item.box.y2) / 2
    return {"left of": across, "right of": -across, "above": down, "below": -down}[relation]


def referring_expression(
    scene: Scene, rng: np.random.Generator, target: int, relation_rate: float = 0.15
) -> str | None:
    """An expression that is true of object `target` of the scene and of no other.

    Usually the fewest attributes that will do ("the red star", "the small striped circle");
    where none do, and at times by chance, a relation ("the red star left of the blue square")
    or an extreme ("the leftmost red star").

    Args:
      scene: the scene.
      rng: source of chance.
      target: index into `scene.objects`.
      relation_rate: chance of a relation where attributes alone would do.

    Returns:
      The expression, or None where this little language has none (rare: the middle one of
      three that look alike).
    """
    plain = _by_attributes(scene.objects, target)
    if not plain or rng.random() < relation_rate:
        spatial = _by_place(scene.objects, target)
        if spatial:
            return str(spatial[rng.integers(len(spatial))])
    # Colour is what people name first.
    colored = [e for e in plain if e.target.color]
    if colored and rng.random() < 0.85:
        plain = colored
    return str(plain[rng.integers(len(plain))]) if plain else None


def _descriptions(item: SceneObject) -> list[Description]:
    """All true descriptions, those with fewest words first, colour before all else."""
    subsets = itertools.product((None, item.size), (None, item.texture), (item.color, None))
    found = [Description(item.shape, color, texture, size) for size, texture, color in subsets]
    return sorted(found, key=lambda d: len(str(d).split()))


def _by_attributes(objects: Sequence[SceneObject], target: int) -> list[Expression]:
    """The shortest unambiguous descriptions; one with a colour also where the shape would do."""
    unique = [
        Expression(description)
        for description in _descriptions(objects[target])
        if _resolve(Expression(description), objects) == (target,)
    ]
    if not unique:
        return []
    fewest = max(2, len(str(unique[0].target).split()))
    return [e for e in unique if len(str(e.target).split()) <= fewest]


def _by_place(objects: Sequence[SceneObject], target: int) -> list[Expression]:
    """Relations and extremes that single out the target with a clear margin.

    Where attributes leave more than one candidate, only expressions that decide between them
    by place are kept: otherwise the relation would be an ornament that nobody needs to read.
    """
    found: list[Expression] = []
    for description in _descriptions(objects[target])[:4]:
        rivals = [k for k in _resolve(Expression(description), objects) if k != target]
        found += [e for e in _extremes(objects, description, target, rivals)]
        found += [e for e in _relations(objects, description, target)]
    needed = [e for e in found if len(_resolve(Expression(e.target), objects)) > 1]
    return needed or found


def _extremes(
    objects: Sequence[SceneObject], description: Description, target: int, rivals: list[int]
) -> list[Expression]:
    if not rivals:
        return []
    return [
        Expression(description, extreme=extreme)
        for extreme, relation in zip(EXTREMES, RELATIONS, strict=True)
        if all(_further(relation, objects[target], objects[k]) >= _MARGIN for k in rivals)
    ]


def _relations(
    objects: Sequence[SceneObject], description: Description, target: int
) -> list[Expression]:
    found = []
    for k, other in enumerate(objects):
        anchor = Description(other.shape, other.color)
        if k == target or _resolve(Expression(anchor), objects) != (k,):
            continue
        for relation in RELATIONS:
            expression = Expression(description, relation=relation, anchor=anchor)
            clear = _further(relation, objects[target], other) >= 2 * _MARGIN
            if clear and _resolve(expression, objects) == (target,):
                found.append(expression)
    return found


def caption(scene: Scene, rng: np.random.Generator, intro: str = "An image of ") -> GroundedText:
    """A caption with a grounded phrase for every object, from left to right.

    Objects of one colour and shape share a phrase ("two blue circles") and its boxes; two
    single objects may be told as a relation ("a red star left of a blue square").

    Args:
      scene: the scene.
      rng: source of chance: which adjectives are said, whether colours are.
      intro: words before the first phrase; they lead to the recipe of a brief description.
    """
    groups = _groups(scene.objects, by_color=rng.random() > 0.15)
    phrases = [_noun_phrase([scene.objects[i] for i in group], rng) for group in groups]
    joints = _joints(scene.objects, groups, rng)
    text, spans = intro, []
    for phrase, group, joint in zip(phrases, groups, joints, strict=True):
        boxes = tuple(scene.objects[i].box for i in group)
        spans.append(Span(phrase, len(text), len(text) + len(phrase), boxes))
        text += phrase + joint
    return GroundedText(text, tuple(spans))


def inventory(scene: Scene) -> GroundedText:
    """Every object with all its attributes, from left to right: "a small plain red star, ..."."""
    text, spans = "", []
    for item in sorted(scene.objects, key=lambda item: item.box):
        phrase = f"a {Description(item.shape, item.color, item.texture, item.size)}"
        text += ", " if text else ""
        spans.append(Span(phrase, len(text), len(text) + len(phrase), (item.box,)))
        text += phrase
    return GroundedText(text + ".", tuple(spans))


def _groups(objects: Sequence[SceneObject], by_color: bool) -> list[list[int]]:
    """Indices of like objects; groups and members from left to right."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in sorted(range(len(objects)), key=lambda i: objects[i].box):
        key = (objects[i].color if by_color else "", objects[i].shape)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _noun_phrase(items: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """ "a large red star", "two blue circles": only adjectives that are true of all."""
    words = []
    chances = (("size", 0.4), ("texture", 0.4), ("color", 1.0))
    for attribute, chance in chances:
        values = {getattr(item, attribute) for item in items}
        if rng.random() < chance and len(values) == 1 and values != {"plain"}:
            words.append(values.pop())
    words.append(items[0].shape if len(items) == 1 else PLURALS[items[0].shape])
    count = "an" if len(items) == 1 and words[0][0] in "aeiou" else COUNTS[len(items)]
    return " ".join([count, *words])


def _joints(
    objects: Sequence[SceneObject], groups: Sequence[Sequence[int]], rng: np.random.Generator
) -> list[str]:
    """What follows each phrase."""
    if len(groups) == 2 and all(len(group) == 1 for group in groups) and rng.random() < 0.5:
        item, other = objects[groups[0][0]], objects[groups[1][0]]
        joint = max(RELATIONS, key=lambda relation: _further(relation, item, other))
        return [f" {joint} ", "."]
    last = len(groups) - 1
    return ["." if i == last else " and " if i == last - 1 else ", " for i in range(last + 1)]
