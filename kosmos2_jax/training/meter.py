"""What a run measures of itself while it trains.

Clocks count training alone: neither the first update, which is compiled, nor evaluation,
checkpoints and whatever else is done within `TrainingMeter.paused`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from kosmos2_jax.training.flops import PARTS, chip_of, model_flops, model_flops_utilisation
from kosmos2_jax.training.groups import ParameterGroups
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.optimizer import learning_rate_schedule
from kosmos2_jax.training.run_config import RunConfig

_COUNTED = ("tokens", "examples", "images")


class TrainingMeter:
    """Collects the metrics of updates on the device, and tells of them now and then.

    No update but the first waits for the host: values are fetched by `read` alone, for all updates
    since it was last called.

    Attributes:
      skipped: updates that were not finite.
    """

    def __init__(
        self,
        run: RunConfig,
        skipped: SkippedUpdates,
        groups: ParameterGroups,
        tasks: Sequence[str] = (),
    ) -> None:
        """Begins before the first update of this start of the run.

        Args:
          run: settings.
          skipped: counts updates that are not finite.
          groups: whose learning rates are told.
          tasks: names of the tasks that `task_loss` and `task_weight` are of.
        """
        self.skipped = skipped
        self._run = run
        self._groups = groups
        self._tasks = tasks
        self._schedule = learning_rate_schedule(run.optimizer)
        self._pending: list[dict[str, jax.Array]] = []
        self._timed = 0  # how many of the pending updates the clock has seen
        self._compiled = False
        self._restart()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the next update, which may still be under way."""
        self._pending.append(metrics)
        self._timed += 1
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled, self._timed = True, 0
            self._restart()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

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
        seconds = time.perf_counter() - self._since - self._paused
        rate = float(self._schedule(step - 1 - self.skipped.total))
        values = {
            **summarise(found, self._tasks),
            "train/learning_rate": rate,
            **{
                f"train/learning_rate/{name}": rate * group.learning_rate_factor
                for name, group in self._groups.trained_settings.items()
            },
            "train/skipped_updates": self.skipped.total,
        }
        if self._timed:
            values |= self._speed(found[-self._timed :], seconds)
        self._pending, self._timed = [], 0
        self._restart()
        return values

    def _speed(self, found: Sequence[Mapping[str, np.ndarray]], seconds: float) -> dict[str, float]:
        counts = {name: sum(float(m[name]) for m in found if name in m) for name in _COUNTED}
        values = {f"speed/{name}_per_second": n / seconds for name, n in counts.items()}
        values["speed/updates_per_second"] = len(found) / seconds
        values["speed/waiting_for_data"] = self._waited / seconds
        device = jax.devices()[0]
        if (chip := chip_of(device.device_kind)) is not None:
            data = self._run.data
            flops = model_flops(
                self._run.model,
                data.batch_size,
                data.length,
                round(counts["images"] / len(found)),
                trained_parts(self._groups),
            )
            # Rows count as full, and the places of pictures that hold none do not count.
            values["speed/mfu"] = model_flops_utilisation(
                flops.total, seconds / len(found), jax.device_count(), chip
            )
        return values

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._paused = self._waited = 0.0


def trained_parts(groups: ParameterGroups) -> tuple[str, ...]:
    """Those of the model's parts that have any trained parameter."""
    trained = groups.trained_settings
    paths = [path for path, names in groups.members.items() if any(n in trained for n in names)]
    return tuple(part for part in PARTS if any(path.startswith(f"{part}/") for path in paths))


def summarise(
    pending: Sequence[Mapping[str, np.ndarray]], tasks: Sequence[str] = ()
) -> dict[str, float]:
    """Means over the updates that were not skipped; sums are divided by those of their weights.

    Args:
      pending: metrics of updates, see `kosmos2_jax.training.step.make_train_step`.
      tasks: names of the entries of `task_loss` and `task_weight`.
    """
    made = [metrics for metrics in pending if not metrics["skipped"]]
    if not made:
        return {}
    total = {
        name: sum(np.asarray(metrics[name], np.float64) for metrics in made) for name in made[0]
    }
    total["loss"] = sum(float(m["loss"]) * float(m["weight"]) for m in made)
    values = {f"train/{name}": value for name, value in means(total, tasks).items()}
    for name in made[0]:
        if name.partition("/")[0] == "gradient_norm":
            values[f"train/{name}"] = float(total[name]) / len(made)
    return {**values, "train/target_tokens": float(total["weight"]) / len(made)}


def means(total: Mapping[str, np.ndarray], tasks: Sequence[str] = ()) -> dict[str, float]:
    """Loss and accuracy of all targets, of location tokens and text apart, and loss by task.

    What has no weight is left out.

    Args:
      total: "loss" and the sums of `kosmos2_jax.inference.model.Kosmos2Model.loss_fn`.
      tasks: names of the entries of `task_loss` and `task_weight`.
    """
    kinds = {"": [float(total[name]) for name in ("loss", "correct", "weight")]}
    if "location/weight" in total:
        location = [float(total[f"location/{name}"]) for name in ("loss", "correct", "weight")]
        kinds["/location"] = location
        kinds["/text"] = [a - b for a, b in zip(kinds[""], location, strict=True)]
    values = {}
    for kind, (loss, correct, weight) in kinds.items():
        if weight > 0:
            values[f"loss{kind}"] = loss / weight
            values[f"accuracy{kind}"] = correct / weight
    if "task_weight" in total:
        by_task = zip(tasks, total["task_loss"], total["task_weight"], strict=True)
        values |= {f"loss/task/{n}": float(loss / w) for n, loss, w in by_task if w > 0}
    return values


def progress(values: Mapping[str, float]) -> dict[str, str]:
    """What of the figures stands at the end of the progress bar."""
    shown = {"loss": f"{values.get('train/loss', math.nan):.3f}"}
    if "speed/tokens_per_second" in values:
        shown["tokens/s"] = f"{values['speed/tokens_per_second']:,.0f}"
        shown["wait"] = f"{values['speed/waiting_for_data']:.0%}"
    return shown
