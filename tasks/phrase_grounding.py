"""seqio tasks over Flickr30k Entities: where is a phrase of a caption? (spec section 5.2)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.data.benchmark_tasks import add_benchmark_task, fractions, pixels
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import PhraseRecord
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example, grounding_example
from kosmos2_jax.evaluation.box_metrics import first_hits, phrase_boxes
from kosmos2_jax.evaluation.means import Figure, means_by_group
from kosmos2_jax.grounding import markup, prompts
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span

BENCHMARK = "flickr30k_grounding"
KS = (1, 5, 10)


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds a task for each split of `folder/flickr30k_grounding`; gives their names."""
    names = []
    for split in BENCHMARKS[BENCHMARK].splits:
        names.append(f"{BENCHMARK}_{split}")
        add_benchmark_task(
            names[-1],
            BENCHMARK,
            split,
            folder / BENCHMARK,
            settings,
            build=_build,
            read=functools.partial(_boxes, settings.vocabulary.grid_size),
            measure=recall,
        )
    return tuple(names)


def _build(record: PhraseRecord, picture: bytes) -> Example:
    """`<grounding>` caption before the phrase, and the phrase (spec section 5.2)."""
    boxes = tuple(fractions(box, record.size) for box in record.boxes)
    span = Span(record.phrase, record.start, record.end, boxes)
    return grounding_example(picture, GroundedText(record.caption, (span,)), 0)


def _boxes(grid_size: int, output: str, record: PhraseRecord) -> list[Box]:
    """What the model put behind the phrase, in pixels."""
    said = markup.parse(prompts.ground(record.phrase) + output, grid_size)
    return [pixels(box, record.size) for box in phrase_boxes(said, record.phrase)]


def recall(targets: Sequence[PhraseRecord], predictions: Sequence[list[Box]]) -> dict[str, float]:
    """R@1, R@5, R@10 and the upper bound, ANY-BOX, also by type, and of MERGED-BOXES."""
    boxes = [record.boxes for record in targets]
    figures = {}
    for kind, merge in (("", False), ("merged_", True)):
        ranks = first_hits(boxes, predictions, merge)
        for k in (*KS, None):
            hits = [float(rank < (float("inf") if k is None else k)) for rank in ranks]
            name = f"{kind}upper_bound" if k is None else f"{kind}r{k}"
            figures[name] = Figure(hits)
            if merge or k is None:
                continue
            types = means_by_group(hits, [record.phrase_types for record in targets])
            figures |= {f"{name}/{group}": mean for group, (mean, _) in types.items()}
    return figures
