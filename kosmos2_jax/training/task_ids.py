"""Which task of a mixture each token of a batch comes from, for losses by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seqio

TASK_IDS = "task_ids"


def task_names(mixture: str) -> tuple[str, ...]:
    """The tasks of a registered mixture, or the task itself, in an order that stays."""
    provider = seqio.get_mixture_or_task(mixture)
    return tuple(sorted(task.name for task in getattr(provider, "tasks", [provider])))


def with_task_ids(
    batch: Mapping[str, np.ndarray], row_tasks: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The batch with the feature `task_ids`, int32 [B, L]: an index into `names`.

    Args:
      batch: `segment_ids` int32 [B, L] tell the examples of a row apart.
      row_tasks: tasks of each row's examples by segment, as of
        `kosmos2_jax.data.packed_pipeline.PackedBatches.row_tasks`.
      names: of all tasks, see `task_names`.
    """
    numbers = {name: number for number, name in enumerate(names)}
    segments = batch["segment_ids"]
    ids = np.zeros(segments.shape, np.int32)
    for row, tasks in enumerate(row_tasks):
        by_segment = np.array([0, *(numbers[task] for task in tasks)], np.int32)
        ids[row] = by_segment[segments[row]]
    return {**batch, TASK_IDS: ids}
