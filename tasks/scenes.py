"""seqio tasks over drawn scenes: captions, referring expressions and phrase grounding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kosmos2_jax.data import document_files, document_tasks, examples
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.phrase_boxes import boxes_of_phrase, first_box_accuracy, phrase_recall
from kosmos2_jax.data.scene_records import VERSION, SceneAnnotation, scene_record
from kosmos2_jax.data.scenes import SPLITS, SceneConfig
from kosmos2_jax.grounding.boxes import Box

CAPTION = "quickstart_scenes_caption"
INVENTORY = "quickstart_scenes_inventory"
REFERRING = "quickstart_scenes_referring"
REC = "quickstart_scenes_rec"
GROUNDING = "quickstart_scenes_grounding"


def write_scenes(
    data_dir: Path,
    split: str,
    count: int,
    seed: int,
    config: SceneConfig | None = None,
    *,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Draws scenes into `data_dir/scenes` unless they are there already; see `write_documents`."""
    config = config or SceneConfig()
    return document_files.write_documents(
        Path(data_dir) / "scenes",
        split,
        count,
        functools.partial(scene_record, split=split, seed=seed, config=config),
        {"version": VERSION, "seed": seed, "config": dataclasses.asdict(config)},
        processes=processes,
        progress=progress,
    )


def register(data_dir: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds the tasks over `data_dir/scenes` to seqio, in place of any of the same names.

    Args:
      data_dir: where `write_scenes` wrote; files need not be there yet.
      settings: how scenes become examples.

    Returns:
      The names of the tasks.
    """
    grid_size = settings.vocabulary.grid_size
    tasks: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        CAPTION: (_build_caption, {}),
        INVENTORY: (_build_inventory, {}),
        REFERRING: (_build_referring, {}),
        REC: (
            _build_rec,
            {"postprocess_fn": boxes_of_phrase(grid_size), "metric_fns": [rec_accuracy]},
        ),
        GROUNDING: (
            _build_grounding,
            {"postprocess_fn": boxes_of_phrase(grid_size), "metric_fns": [grounding_recall]},
        ),
    }
    for name, (build, evaluation) in tasks.items():
        document_tasks.add_task(
            name,
            [str(Path(data_dir) / "scenes")],
            settings,
            ("scene",),
            document_tasks.encode_built(build),
            splits=SPLITS,
            **evaluation,
        )
    return tuple(tasks)


def _build_caption(scene: Document) -> tuple[examples.Example, dict[str, Any]]:
    caption = SceneAnnotation.from_dict(scene.content).caption
    return examples.caption_example(scene.images[0], caption), {}


def _build_inventory(scene: Document) -> tuple[examples.Example, dict[str, Any]]:
    """Everything there is to say, the same way each time: the quickest lesson in seeing."""
    inventory = SceneAnnotation.from_dict(scene.content).inventory
    return examples.caption_example(scene.images[0], inventory), {}


def _build_referring(scene: Document) -> tuple[examples.Example, dict[str, Any]]:
    """All expressions of a scene in a row, for training."""
    referring = SceneAnnotation.from_dict(scene.content).referring
    expressions = [(r.text, (r.box,)) for r in referring]
    # Saying what there is teaches a small model to see it; boxes alone teach it much later.
    return examples.referring_example(scene.images[0], expressions, learn_words=True), {}


def _build_rec(scene: Document) -> tuple[examples.Example, dict[str, Any]]:
    """One expression of a scene, as in the evaluation of RefCOCO (spec section 5.3)."""
    first = SceneAnnotation.from_dict(scene.content).referring[0]
    truth = _truth(first.text, (first.box,), first.held_out)
    return examples.referring_example(scene.images[0], [(first.text, (first.box,))]), truth


def _build_grounding(scene: Document) -> tuple[examples.Example, dict[str, Any]]:
    """One phrase of the caption after the words before it (spec section 5.2)."""
    said = SceneAnnotation.from_dict(scene.content)
    span = said.caption.spans[said.phrase]
    truth = _truth(span.text, span.boxes, said.phrase_held_out)
    return examples.grounding_example(scene.images[0], said.caption, said.phrase), truth


def _truth(phrase: str, boxes: Sequence[Box], held_out: bool) -> dict[str, Any]:
    return {"phrase": phrase, "boxes": [list(box) for box in boxes], "held_out": held_out}


def rec_accuracy(targets: list[dict[str, Any]], predictions: list[list[Box]]) -> dict[str, float]:
    """Share of first boxes with IoU of at least 0.5, for all and by what training has shown."""

    def measure(chosen: list[int]) -> dict[str, float]:
        found = first_box_accuracy([targets[i] for i in chosen], [predictions[i] for i in chosen])
        return {"rec_accuracy": found}

    return _by_novelty(targets, measure)


def grounding_recall(
    targets: list[dict[str, Any]], predictions: list[list[Box]]
) -> dict[str, float]:
    """R@1, R@5 and R@10 by the any-box rule, for all and by what training has shown."""

    def measure(chosen: list[int]) -> dict[str, float]:
        recall = phrase_recall([targets[i] for i in chosen], [predictions[i] for i in chosen])
        return {f"phrase_grounding_{key}": value for key, value in recall.items()}

    return _by_novelty(targets, measure)


def _by_novelty(
    targets: list[dict[str, Any]], measure: Callable[[list[int]], dict[str, float]]
) -> dict[str, float]:
    """The measure over all, and over the objects of seen and of held-out combinations."""
    groups = {
        "": list(range(len(targets))),
        "_seen": [i for i, target in enumerate(targets) if not target["held_out"]],
        "_held_out": [i for i, target in enumerate(targets) if target["held_out"]],
    }
    return {
        name + suffix: value
        for suffix, chosen in groups.items()
        if chosen
        for name, value in measure(chosen).items()
    }
