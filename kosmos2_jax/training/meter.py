"""What a run measures of itself while it trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from kosmos2_jax.training.groups import ParameterGroups
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.optimizer import learning_rate_schedule
from kosmos2_jax.training.run_config import RunConfig


class TrainingMeter:
    """Collects the metrics of updates on the device, and tells of them now and then.

    No update waits for the host: values are fetched by `read` alone, for all updates since it was
    last called. Time spent within `paused`, in evaluation or checkpointing, is not training time.

    Attributes:
      skipped: updates that were not finite.
    """

    def __init__(self, run: RunConfig, skipped: SkippedUpdates, groups: ParameterGroups) -> None:
        """Starts the clock."""
        self.skipped = skipped
        self._run = run
        self._groups = groups
        self._schedule = learning_rate_schedule(run.optimizer)
        self._pending: list[dict[str, jax.Array]] = []
        self._since = time.perf_counter()
        self._paused = 0.0

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the next update, which may still be under way."""
        self._pending.append(metrics)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock meanwhile."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def read(self, step: int) -> dict[str, float]:
        """Figures of the updates since the last call, up to `step`; waits for them."""
        found = jax.device_get(self._pending)
        self.skipped.read(found)
        now = time.perf_counter()
        seconds = now - self._since - self._paused
        self._pending, self._since, self._paused = [], now, 0.0
        rate = float(self._schedule(step - 1 - self.skipped.total))
        return {
            **summarise(found),
            "train/learning_rate": rate,
            **{
                f"train/learning_rate/{name}": rate * group.learning_rate_factor
                for name, group in self._groups.trained_settings.items()
            },
            "train/skipped_updates": self.skipped.total,
            "train/rows_per_second": len(found) * self._run.data.batch_size / seconds,
        }


def summarise(pending: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over the updates that were not skipped; sums are divided by those of their weights."""
    made = [metrics for metrics in pending if not metrics["skipped"]]
    if not made:
        return {}
    columns = {name: [float(metrics[name]) for metrics in made] for name in made[0]}
    weight = sum(columns["weight"])
    return {
        "train/loss": sum(
            loss * w for loss, w in zip(columns["loss"], columns["weight"], strict=True)
        )
        / weight,
        "train/accuracy": sum(columns["correct"]) / weight,
        **{
            f"train/{name}": float(np.mean(values))
            for name, values in columns.items()
            if name.partition("/")[0] == "gradient_norm"
        },
        "train/target_tokens": weight / len(columns["weight"]),
    }
