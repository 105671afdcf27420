"""Updates that were skipped because their loss or gradient was not finite (see `step.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np
from etils import epath

from kosmos2_jax.errors import TrainingError


class SkippedUpdates:
    """Counts them as metrics are read, so that no update waits for the host.

    Attributes:
      total: since the run began.
      in_row: the last ones, up to the last metrics that were read.
    """

    def __init__(self, total: int, limit: int) -> None:
        """Goes on from `total`; `limit` of them in a row stop the run."""
        self.total = total
        self.in_row = 0
        self._limit = limit

    def read(self, metrics: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Counts the updates with these metrics, which come after those read before."""
        for values in metrics:
            self.total += int(values["skipped"])
            self.in_row = int(values["skipped_in_row"])

    def check(self, step: int, batch: Mapping[str, np.ndarray], folder: epath.Path) -> None:
        """Saves the batch of the last update and stops the run if too many were skipped in a row.

        A row that ended before its metrics were read is only counted: the run has recovered.

        Args:
          step: the last update read.
          batch: its rows that this process has read.
          folder: gets `nonfinite_batch_{step}.npz`, or with several processes
            `nonfinite_batch_{step}_{process}.npz`, an array for each feature.

        Raises:
          TrainingError: it is stopped.
        """
        if self.in_row < self._limit:
            return
        process = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
        file = folder / f"nonfinite_batch_{step}{process}.npz"
        with file.open("wb") as opened:
            np.savez(opened, **batch)
        raise TrainingError(
            f"the loss or gradient of the last {self.in_row} updates, up to update {step}, was not "
            f"finite and they were skipped; the last batch is in {file}: look into it, or give "
            "another --workdir and a smaller optimizer.learning_rate"
        )
