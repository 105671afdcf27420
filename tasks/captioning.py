"""seqio tasks over Karpathy's splits of Flickr30k and COCO (spec sections 5.5 and 5.8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.data.benchmark_tasks import add_benchmark_task
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.records import CaptionRecord, Record
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example, Picture, Text
from kosmos2_jax.evaluation import coco_java
from kosmos2_jax.evaluation.captions import score_captions
from kosmos2_jax.grounding import tags

CAPTIONING = ("flickr30k_captions", "coco_captions")
PROMPT = "An image of"
SHOTS = (2, 4, 8)
_BEAMS = 5


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds tasks, also few-shot, for each split of each set below `folder`; gives their names."""
    asked = [
        (benchmark, split, shots)
        for benchmark in CAPTIONING
        for split in BENCHMARKS[benchmark].splits
        for shots in (0, *SHOTS)
    ]
    for benchmark, split, shots in asked:
        add_benchmark_task(
            task_name(benchmark, split, shots),
            benchmark,
            split,
            folder / benchmark,
            settings,
            build=_build,
            read=plain_text,
            measure=_figures,
            num_beams=_BEAMS,
            shots=shots,
        )
    return tuple(task_name(*parts) for parts in asked)


def task_name(benchmark: str, split: str, shots: int) -> str:
    """As "coco_captions_test", "coco_captions_test_4shot", "vqav2_test_dev2015"."""
    name = f"{benchmark}_{split}".replace("-", "_")  # which seqio does not allow
    return f"{name}_{shots}shot" if shots else name


def _build(record: CaptionRecord, picture: bytes) -> Example:
    caption = tags.require_no_tags(record.captions[0], "The caption")
    return Example((Picture(picture), Text(PROMPT, False), Text(caption, True)))


def plain_text(output: str, record: Record) -> str:
    """What the model wrote, without tags: one that grounds its words is not wrong for that."""
    return " ".join(tags.ANY_TAG.sub("", output).split())


def _figures(targets: Sequence[CaptionRecord], predictions: Sequence[str]) -> dict[str, float]:
    return caption_figures([record.captions for record in targets], predictions)


def caption_figures(
    references: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
    """COCO's figures; METEOR, and COCO's own tokenizer, where Java is."""
    official = coco_java.is_available()
    return score_captions(references, predictions, official=official).figures()
