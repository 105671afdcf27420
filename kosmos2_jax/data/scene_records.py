"""Scenes with what is said about them, as documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kosmos2_jax.data.document_files import encode_png
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.scene_language import caption, inventory, referring_expression
from kosmos2_jax.data.scenes import SceneConfig, draw_scene, is_held_out, scene_rng
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText

# Of what annotations hold; records of another version are written anew.
VERSION = 5


@dataclasses.dataclass(frozen=True)
class Referring:
    """An expression that is true of one object only, and whether training had its like."""

    text: str
    box: Box
    held_out: bool


@dataclasses.dataclass(frozen=True)
class SceneAnnotation:
    """What is said about a scene.

    Attributes:
      caption: every object in some phrase.
      phrase: the span of `caption` that phrase grounding asks for.
      phrase_held_out: whether one of its objects is of a held-out colour and shape.
      inventory: every object in a phrase of its own, with all its attributes.
      referring: expressions for the objects, in random order. That each comes once is a
        curriculum: the last ones leave few objects to choose from.
    """

    caption: GroundedText
    phrase: int
    phrase_held_out: bool
    inventory: GroundedText
    referring: tuple[Referring, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "caption": self.caption.to_dict(),
            "phrase": self.phrase,
            "phrase_held_out": self.phrase_held_out,
            "inventory": self.inventory.to_dict(),
            "referring": [[r.text, list(r.box), r.held_out] for r in self.referring],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SceneAnnotation:
        """Reads what `to_dict` wrote."""
        return cls(
            GroundedText.from_dict(data["caption"]),
            data["phrase"],
            data["phrase_held_out"],
            GroundedText.from_dict(data["inventory"]),
            tuple(Referring(text, Box(*box), held) for text, box, held in data["referring"]),
        )


def scene_record(index: int, split: str, seed: int, config: SceneConfig) -> Document:
    """Scene `index` of a split with its annotation; the same whenever and wherever it is made."""
    rng = scene_rng(seed, split, index)
    referring: list[Referring] = []
    while not referring:  # hardly ever, words fail for a whole scene
        scene = draw_scene(rng, config, split)
        said = caption(scene, rng)
        phrase = int(rng.integers(len(said.spans)))
        held_out = {item.box for item in scene.objects if is_held_out(item, config)}
        for k in rng.permutation(len(scene.objects)).tolist():
            text = referring_expression(scene, rng, k)
            if text is not None:
                box = scene.objects[k].box
                referring.append(Referring(text, box, box in held_out))
    annotation = SceneAnnotation(
        said,
        phrase,
        any(box in held_out for box in said.spans[phrase].boxes),
        inventory(scene),
        tuple(referring),
    )
    return Document(
        kind="scene",
        images=(encode_png(scene.pixels),),
        content=annotation.to_dict(),
        size=None,
        source="scenes",
        key=f"{split} {index}",
    )
