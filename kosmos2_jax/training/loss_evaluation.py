"""Evaluation by loss: targets of a validation split, each predicted from the true ones before."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.training.meter import means
from kosmos2_jax.training.processes import WHOLE, DataShard, global_batch
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.run_data import open_batches
from kosmos2_jax.training.task_ids import task_names, with_task_ids


@dataclasses.dataclass(frozen=True)
class LossEvaluation:
    """Loss and accuracy on the first rows of `run.evaluation.loss_mixture`, always the same ones.

    Attributes:
      run: its settings; rows are as long and as full as in training.
      model: the contract.
      rows: sharding of a batch.
      shard: the part of the data that this process reads.
    """

    run: RunConfig
    model: Kosmos2Model
    rows: NamedSharding
    shard: DataShard = WHOLE

    def __call__(self, params: Any) -> dict[str, float]:
        """Figures named as those of training: "loss", "accuracy/location", "loss/task/NAME"."""
        run, config = self.run, self.run.evaluation
        names = task_names(config.loss_mixture)
        size = run.data.batch_size // run.micro_batches
        batches = open_batches(
            run, config.loss_mixture, size, self.shard, pack=run.data.pack, split=config.loss_split
        )
        found = []
        # As many batches on every process, whatever its part of the data holds.
        for _ in range(-(-config.loss_rows // size)):
            batch = with_task_ids(next(batches), batches.row_tasks(), names)
            found.append(self._sums(params, global_batch(batch, self.rows)))
        batches.close()
        sums = jax.device_get(found)
        total = {name: sum(np.asarray(s[name], np.float64) for s in sums) for name in sums[0]}
        return means(total, names)

    @functools.cached_property
    def _sums(self) -> Any:
        model = dataclasses.replace(
            self.model, num_tasks=len(task_names(self.run.evaluation.loss_mixture))
        )

        def sums(params: Any, batch: Any) -> dict[str, jax.Array]:
            loss, sums = model.loss_fn(params, batch)
            return {"loss": loss, **sums}

        return jax.jit(sums)
