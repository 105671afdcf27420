"""Figures of a registered task for answers that are known, without any model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
from PIL import Image

from kosmos2_jax.data.choices import CANDIDATES, read_rows
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

LATENTS = 5  # of the tiny model
LENGTHS = feature_lengths(255, 14)


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 4), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Text and bytes as they are, all else as JSON, and lists in .jsonl as a line each."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            content = "".join(f"{json.dumps(line)}\n" for line in content)
        elif not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def figures(name: str, answers: Sequence[str]) -> dict[str, float]:
    """The task's figures for a model that answers so."""
    evaluator = seqio.Evaluator(
        name,
        feature_converter=PackingFeatureConverter(28),
        eval_split="test",
        sequence_length=LENGTHS,
    )
    metrics, _ = evaluator.evaluate(
        compute_metrics=True, predict_fn=lambda _: list(enumerate(answers))
    )
    found = metrics.result()[name]
    evaluator.close()
    return {key.removeprefix(f"{name}_"): float(value) for key, value in found.items()}


def says(choices: Sequence[int], candidates: int) -> list[str]:
    """Answers that hold these candidates most probable."""
    return [
        json.dumps([[-1.0] if number == choice else [-2.0] for number in range(candidates)])
        for choice in choices
    ]


def examples(name: str) -> list[dict[str, Any]]:
    """The examples of the task."""
    dataset = seqio.get_mixture_or_task(name).get_dataset(LENGTHS, "test", shuffle=False)
    return list(dataset.as_numpy_iterator())


def asked(example: Mapping[str, Any], vocabulary: Kosmos2Vocabulary) -> list[tuple[str, list[str]]]:
    """The prompt of each row of candidates, [N] for the picture N, and what may follow it."""
    found = []
    for row in read_rows(example[CANDIDATES]):
        words: list[Any] = []
        for token, slot in zip(row.ids[1:], row.image_slots[1:], strict=True):
            if slot < 0:
                words.append(token)
            elif slot % LATENTS == 0:
                words.append(f"[{row.pictures[slot // LATENTS]}]")
        found.append((_read(words, vocabulary), [vocabulary.decode(ids) for ids in row.answers]))
    return found


def _read(words: Sequence[Any], vocabulary: Kosmos2Vocabulary) -> str:
    text, run = "", []
    for word in [*words, ""]:
        if isinstance(word, str):
            text += vocabulary.decode(np.array(run, np.int32)) if run else ""
            text, run = text + word, []
        else:
            run.append(word)
    return text.replace("<image>", "").replace("</image>", "")
