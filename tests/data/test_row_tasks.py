"""The tasks of a row's examples, as batches tell them."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np

from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.encode_document import EncodeSettings
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import packed_batches
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import mixtures

from . import prepared


def test_each_segment_has_its_task(vocabulary: Kosmos2Vocabulary, tmp_path: Path) -> None:
    prepared.write_all(tmp_path, 40, ("text", "captions", "interleaved"))
    settings = TaskSettings(vocabulary, EncodeSettings(num_latents=4, max_tokens=64))
    rates = {"text": 1.0, "captions": 3.0, "interleaved": 1.0}
    name = mixtures.register("row_tasks", rates, tmp_path, settings)
    batches = packed_batches(
        name, feature_lengths(64, 4), 4, 0, image_size=16, num_epochs=1, num_streams=2
    )
    assert batches.row_tasks() == []
    pictures = {"text": 0, "captions": 1, "interleaved": 2}
    counts: collections.Counter[str] = collections.Counter()
    for batch in batches:
        tasks = batches.row_tasks()
        for index, names in enumerate(tasks):
            segments, slots = batch["segment_ids"][index], batch["image_slots"][index]
            assert segments.max() == len(names)
            for segment, task in enumerate(names, start=1):
                shown = np.unique(slots[(segments == segment) & (slots >= 0)] // 4)
                assert len(shown) == pictures[task]
            counts.update(names)
        assert not batch["segment_ids"][len(tasks) :].any()
    assert counts == {task: examples for task, (examples, _) in batches.tasks().items()}
