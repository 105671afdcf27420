"""Checkpoints of a run: state and position in the data together, by Orbax.

Dropout follows from the seed and the number of the update, so that nothing else needs to be saved.
A checkpoint is committed by renaming its folder, and only after a manifest of its files was
written (`manifest.py`): what has its final name and fits its manifest is what was saved.

With several processes, whose `folder` is one and the same, each writes its parts of the arrays and
its place in the data; the manifest is written by process 0 when all are done.

In a bucket (`gs://`) no renaming commits a checkpoint but a mark that Orbax writes last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import jax
import orbax.checkpoint as ocp
from etils import epath

from kosmos2_jax.data.packed_pipeline import PackedBatches
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.interop.files import as_path, in_bucket, move_folder
from kosmos2_jax.training.data_places import RestorePlaces, SavePlace
from kosmos2_jax.training.manifest import find_damage, is_committed, write_manifest
from kosmos2_jax.training.processes import first_does
from kosmos2_jax.training.state import TrainState

_log = logging.getLogger(__name__)
_policies = ocp.checkpoint_managers


class RunCheckpoints:
    """Saves and restores (state, data position) under `folder`; the latest and the best stay."""

    def __init__(
        self,
        folder: epath.PathLike,
        keep: int,
        best_mode: str = "max",
        *,
        keeps_place: bool = True,
    ) -> None:
        """Opens or creates `folder`, so that its newest checkpoint is a whole one.

        Newer ones that are damaged are moved to the folder's sibling `NAME.damaged`, with a
        warning that says what is wrong with them. Nothing is moved if none is whole.

        Args:
          folder: of this run alone.
          keep: how many of the latest stay.
          best_mode: "max" or "min", which of the figures given to `note` is the best; its
            checkpoint stays too.
          keeps_place: whether this process saves its place in the data, see
            `kosmos2_jax.training.processes.DataShard`.

        Raises:
          CheckpointError: there are checkpoints, but no whole one.
        """
        self._folder = as_path(folder)
        self._figures: dict[int, float] = {}
        self._sign = {"max": 1.0, "min": -1.0}[best_mode]
        self._keeps_place = keeps_place
        first_does(lambda: _set_aside_damaged(self._folder))
        self._saved: int | None = None
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=True,
                # Of runs that ended while they saved.
                cleanup_tmp_directories=True,
                preservation_policy=_policies.AnyPreservationPolicy(
                    [_policies.LatestN(keep), _Best(self)]
                ),
                # Orbax calls it when all files are written, before it renames their folder.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )

    def latest(self) -> int | None:
        """Update after which the last checkpoint was written, or None."""
        return self._manager.latest_step()

    def note(self, step: int, figure: float) -> None:
        """Tells how good the model was after `step`; what is not finite is never the best."""
        if math.isfinite(figure):
            self._figures[step] = figure

    def best(self) -> int | None:
        """The checkpoint of the best figure, the earliest of equals; None before any `note`."""
        return self._best_of(self._manager.all_steps())

    def stale(self) -> int:
        """How many figures were noted since the best one, the earliest of equals."""
        best = self._best_of(list(self._figures))
        return 0 if best is None else sum(step > best for step in self._figures)

    def _best_of(self, steps: Sequence[int]) -> int | None:
        known = [step for step in sorted(steps) if step in self._figures]
        return max(known, key=lambda step: self._sign * self._figures[step], default=None)

    def save(self, step: int, state: TrainState, batches: PackedBatches) -> None:
        """Starts to write; returns before all is on disk. A half-written one never counts.

        Nothing happens if `step` was the last one saved.

        Raises:
          CheckpointError: see `check`.
        """
        if step == self._saved:
            return
        place = batches.get_state() if self._keeps_place else b""
        self._wait()
        self._saved = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state._asdict()),
                    data=SavePlace(batches.shard, place, self._keeps_place),
                ),
            )
        except Exception as error:
            raise self._not_saved(error) from error

    def check(self) -> None:
        """Tells whether what was being written went wrong meanwhile; does not wait for it.

        Raises:
          CheckpointError: a checkpoint could not be written. The ones before it are all there.
        """
        if not self._manager.is_saving_in_progress():
            self._wait()

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of the threads that write: Orbax's, TensorStore's, anybody's
            raise self._not_saved(error) from error

    def _not_saved(self, error: Exception) -> CheckpointError:
        bucket = in_bucket(self._folder)
        mend = "see that the bucket may be written to" if bucket else "make room on the disk"
        return CheckpointError(
            f"checkpoint {self._saved} could not be saved in {self._folder} ({_reason(error)}); "
            f"those before it are untouched: {mend} and run the same command again"
        )

    def _write_manifest(self) -> None:
        # On a disk files are written to "6.orbax-checkpoint-tmp", or the like, first.
        temporary = self._folder.glob(f"{self._saved}.*")
        write_manifest(next(temporary, self._folder / str(self._saved)))

    def restore(
        self,
        step: int,
        shapes: TrainState,
        shardings: TrainState,
        batches: PackedBatches | None = None,
    ) -> TrainState:
        """The state, straight into its shardings; moves `batches` to where they were.

        Neither need be those of the run that saved: any mesh, any number of processes and of
        shards of the data will do.

        Args:
          step: see `latest` and `best`.
          shapes: abstract state.
          shardings: of every array.
          batches: the run's data, if it is to go on.

        Raises:
          CheckpointError: the files are damaged or of another run.
        """
        self._wait()
        # Of the latest, this was found out when the folder was opened.
        if step != self.latest():
            first_does(lambda: _check(self._folder / str(step)))
        items = {} if batches is None else {"data": RestorePlaces(batches.shard)}
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target._asdict()), **items),
            )
        except CheckpointError:
            raise
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self._folder} does not fit this run ({_reason(error)}); "
                "give another --workdir, or the settings it was started with"
            ) from error
        if batches is not None:
            batches.set_state(*restored["data"])
        return TrainState(**restored["state"])

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          CheckpointError: see `check`.
        """
        self._wait()
        self._manager.close()


class _Best(_policies.PreservationPolicy):
    """Keeps the checkpoint of the best figure.

    Orbax's own wants the figure when a checkpoint is saved. Here evaluation comes after saving, so
    that a run that is killed while it evaluates has lost nothing.
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context):
        best = self._checkpoints._best_of([info.step for info in checkpoints])
        return [info.step == best for info in checkpoints]


def _check(folder: epath.Path) -> None:
    if damage := find_damage(folder):
        raise CheckpointError(f"checkpoint {folder} is damaged ({damage}); remove it")


def _set_aside_damaged(folder: epath.Path) -> None:
    """Moves what is newer than the newest whole checkpoint to a folder beside `folder`."""
    if not folder.is_dir():
        return
    steps = []
    for path in sorted(folder.iterdir()):
        if path.name.isdigit() and is_committed(path):
            steps.append(int(path.name))
        elif path.name.partition(".")[0].isdigit():
            _log.warning("checkpoint %s was half-written when the run ended: removed", path)
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        damage = find_damage(folder / str(step))
        if damage is None:
            break
        damaged[step] = damage
    else:
        if damaged:
            found = "; ".join(f"{step}: {damage}" for step, damage in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {folder} is whole ({found}); give another --workdir, or remove "
                "this one to begin again"
            )
    for step, damage in damaged.items():
        place = folder.with_name(f"{folder.name}.damaged")
        place.mkdir(exist_ok=True)
        # One of the same update may have been set aside before; a bucket has no empty folders.
        others = place.iterdir() if place.exists() else ()
        number = sum(path.name.partition("-")[0] == str(step) for path in others)
        target = place / (f"{step}-{number + 1}" if number else str(step))
        move_folder(folder / str(step), target)
        _log.warning(
            "checkpoint %s is damaged (%s): moved to %s, and the one before it is used",
            folder / str(step),
            damage,
            target,
        )


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
