"""Tasks that ask for the boxes of a phrase: what the model wrote, read and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kosmos2_jax.data.document_tasks import truth_of
from kosmos2_jax.evaluation import box_metrics
from kosmos2_jax.grounding import markup, prompts
from kosmos2_jax.grounding.boxes import Box


def boxes_of_phrase(grid_size: int) -> Callable[..., Any]:
    """Makes the postprocessor of tasks that ask for the boxes of a phrase.

    The truth of their examples is `{"phrase": str, "boxes": [[x1, y1, x2, y2], ...]}` and what else
    they like. The model's words are read behind the phrase that was asked for. Boxes count if their
    phrase is that one by its text (spec sections 5.2 and 5.3).

    Args:
      grid_size: cells a side.
    """

    def postprocess(
        output: str, example: Mapping[str, Any], is_target: bool
    ) -> dict[str, Any] | list[Box]:
        truth = truth_of(example)
        if is_target:
            return {**truth, "boxes": [Box(*box) for box in truth["boxes"]]}
        said = markup.parse(prompts.ground(truth["phrase"]) + output, grid_size)
        return box_metrics.phrase_boxes(said, truth["phrase"])

    return postprocess


def first_box_accuracy(targets: list[dict[str, Any]], predictions: list[list[Box]]) -> float:
    """Share of first boxes that hit the first true one, 0..1; no box is a miss."""
    return box_metrics.rec_accuracy(
        [target["boxes"][0] for target in targets],
        [boxes[0] if boxes else None for boxes in predictions],
    )


def phrase_recall(targets: list[dict[str, Any]], predictions: list[list[Box]]) -> dict[str, float]:
    """R@1, R@5 and R@10 by the any-box rule, as "r1", "r5" and "r10", 0..1."""
    return box_metrics.recall_at_k([target["boxes"] for target in targets], predictions)
