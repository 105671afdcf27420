"""seqio task over easy-vqa: simple questions about pictures of one shape (its own split)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seqio

from kosmos2_jax.data import examples, features, preprocessing, records
from kosmos2_jax.data.easy_vqa_records import SPLITS, VERSION, easy_vqa_record, question_records
from kosmos2_jax.data.preprocessing import ModelInputs, truth_of
from kosmos2_jax.evaluation import vqa
from kosmos2_jax.grounding import GroundedText, tags

NAME = "quickstart_easy_vqa"
CONTENTS = "quickstart_easy_vqa_contents"


def write_easy_vqa(
    data_dir: Path,
    split: str,
    image_size: int = 64,
    *,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Copies a split into `data_dir/easy_vqa` unless it is there; see `write_records`.

    A training record has up to four questions about its picture, a test record one.
    """
    per_record = 4 if split == "train" else 1
    settings = {"per_record": per_record, "image_size": image_size}
    return records.write_records(
        Path(data_dir) / "easy_vqa",
        split,
        len(question_records(split, per_record)),
        functools.partial(easy_vqa_record, split=split, **settings),
        {"version": VERSION, **settings},
        progress=progress,
    )


def register(data_dir: Path, inputs: ModelInputs) -> tuple[str, ...]:
    """Adds the tasks over `data_dir/easy_vqa` to seqio, in place of any of the same names."""
    tasks: dict[str, tuple[preprocessing.Build, dict[str, Any]]] = {
        NAME: (_build, {"postprocess_fn": _postprocess, "metric_fns": [vqa_accuracy]}),
        CONTENTS: (_build_contents, {}),
    }
    for name, (build, evaluation) in tasks.items():
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=preprocessing.record_source(Path(data_dir) / "easy_vqa", SPLITS),
            preprocessors=[preprocessing.encode_records(build, inputs)],
            output_features=features.output_features(inputs.vocabulary),
            shuffle_buffer_size=64,  # records are in random order already
            **evaluation,
        )
    return tuple(tasks)


def _build(
    pixels: np.ndarray, annotation: Mapping[str, Any]
) -> tuple[examples.Example, dict[str, Any]]:
    pairs = [(question, answer) for question, answer in annotation["pairs"]]
    question, answer = pairs[0]
    return examples.question_example([pixels], pairs), {"question": question, "answer": answer}


def _build_contents(
    pixels: np.ndarray, annotation: Mapping[str, Any]
) -> tuple[examples.Example, dict[str, Any]]:
    """What there is to see: the quickest lesson in seeing it."""
    return examples.caption_example(pixels, GroundedText(annotation["contents"])), {}


def _postprocess(output: str, example: Mapping[str, Any], is_target: bool) -> list[str] | str:
    if is_target:
        return [truth_of(example)["answer"]]
    # A model that grounds its answer is not wrong for that.
    return tags.ANY_TAG.sub("", output).strip()


def vqa_accuracy(targets: list[list[str]], predictions: list[str]) -> dict[str, float]:
    """Share of answers that are right by the rules of VQAv2."""
    return {"vqa_accuracy": vqa.vqa_accuracy(targets, predictions)}
