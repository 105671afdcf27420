"""seqio tasks over RefCOCO, RefCOCO+ and RefCOCOg: comprehension and generation of expressions.

Spec sections 5.3 and 5.4.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.data.benchmark_tasks import add_benchmark_task, fractions, pixels
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import ReferringRecord
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example, Picture, Text, referring_example
from kosmos2_jax.evaluation import box_metrics
from kosmos2_jax.grounding import markup, prompts, tags
from kosmos2_jax.grounding.boxes import Box

from .captioning import caption_figures, plain_text, task_name

COMPREHENSION = ("refcoco", "refcoco_plus", "refcocog")
GENERATION = "refcocog_generation"
SHOTS = (2, 4)


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds a task for each split of each set below `folder`; gives their names."""
    grid_size = settings.vocabulary.grid_size
    names = []
    shots = {GENERATION: (0, *SHOTS)}
    for benchmark in (*COMPREHENSION, GENERATION):
        if benchmark == GENERATION:
            parts = {
                "build": functools.partial(_build_generation, grid_size),
                "read": plain_text,
                "measure": _expression_figures,
            }
        else:
            read = functools.partial(_first_box, grid_size)
            parts = {"build": _build_comprehension, "read": read, "measure": accuracy}
        place = folder / benchmark
        for split, count in itertools.product(
            BENCHMARKS[benchmark].splits, shots.get(benchmark, (0,))
        ):
            names.append(task_name(benchmark, split, count))
            add_benchmark_task(names[-1], benchmark, split, place, settings, shots=count, **parts)
    return tuple(names)


def _build_comprehension(record: ReferringRecord, picture: bytes) -> Example:
    box = fractions(record.box, record.size)
    return referring_example(picture, [(record.expressions[0], (box,))])


def _first_box(grid_size: int, output: str, record: ReferringRecord) -> Box | None:
    """The first box of the expression, in pixels."""
    expression = record.expressions[0]
    said = markup.parse(prompts.ground(expression) + output, grid_size)
    boxes = box_metrics.phrase_boxes(said, expression)
    return pixels(boxes[0], record.size) if boxes else None


def accuracy(
    targets: Sequence[ReferringRecord], predictions: Sequence[Box | None]
) -> dict[str, float]:
    """Share of first boxes that hit.

    A true box that reaches out of its picture is compared as it was annotated, as the official
    script does (spec section 5.3), though what a model is taught or shown of it ends at the edge.
    """
    return {"accuracy": box_metrics.rec_accuracy([r.box for r in targets], predictions)}


def _build_generation(grid_size: int, record: ReferringRecord, picture: bytes) -> Example:
    """`<grounding><phrase> It</phrase><object>...</object> is`, then an expression."""
    prompt = prompts.refer(fractions(record.box, record.size), grid_size)
    expression = tags.require_no_tags(record.expressions[0], "The expression")
    return Example((Picture(picture), Text(prompt, False), Text(expression, True)))


def _expression_figures(
    targets: Sequence[ReferringRecord], predictions: Sequence[str]
) -> dict[str, float]:
    return caption_figures([record.expressions for record in targets], predictions)
