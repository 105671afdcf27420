"""Checkpoints of a run: state and position in the data together, by Orbax."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from kosmos2_jax.data.packed_pipeline import PackedBatches
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.training.state import TrainState


class RunCheckpoints:
    """Saves and restores (state, data position) under `folder`, the latest few kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or creates `folder`; `keep` of the latest checkpoints stay."""
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        )

    def latest(self) -> int | None:
        """Update after which the last checkpoint was written, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, batches: PackedBatches) -> None:
        """Starts to write; returns before all is on disk. A half-written one never counts."""
        place = {"bytes": np.frombuffer(batches.get_state(), np.uint8)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), data=ocp.args.StandardSave(place)
            ),
        )

    def restore(
        self, step: int, shapes: TrainState, shardings: TrainState, batches: PackedBatches
    ) -> TrainState:
        """The state, straight into its shardings; moves `batches` to where they were.

        Args:
          step: see `latest`.
          shapes: abstract state.
          shardings: of every array.
          batches: the run's data.

        Raises:
          CheckpointError: the files are damaged or of another run.
        """
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target._asdict()),
                    data=ocp.args.StandardRestore(),
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"checkpoint {step} in {self._folder} does not fit this run ({first}); give "
                "another --workdir, or the settings it was started with"
            ) from error
        batches.set_state(np.asarray(restored["data"]["bytes"]).tobytes())
        return TrainState(**restored["state"])

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
