"""Metrics to a JSONL file and TensorBoard; of several processes, process 0 writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.files import as_path, new_file
from kosmos2_jax.training.local_folder import LocalFolder
from kosmos2_jax.training.processes import gather, is_first

_FILE = "metrics.jsonl"
# Seconds between copies of the files into a bucket; lines on a disk are there at once.
_PUSH_EVERY = 60.0


class MetricLog:
    """Writes scalars by update; what a resumed run will write again is removed first."""

    def __init__(
        self,
        folder: epath.PathLike,
        first_step: int = 0,
        wandb_project: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens `folder/metrics.jsonl` and TensorBoard's files beside it.

        Args:
          folder: created if missing; one for all processes.
          first_step: lines of later updates are dropped (a run was killed after its checkpoint).
          wandb_project: of Weights & Biases, which gets the metrics too; empty for none.
          settings: of the run, for Weights & Biases.

        Raises:
          ConfigError: Weights & Biases is asked for and not installed.
        """
        from tensorboardX import SummaryWriter

        folder = as_path(folder)
        former = _lines(folder / _FILE, first_step)
        self._former = [json.loads(line) for line in former]
        gather(None)  # all have read before the first writes
        self._writes = is_first()
        if self._writes:
            self._folder = LocalFolder(folder)
            file = self._folder.path / _FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            # A kill at this moment must not lose the lines of days.
            with new_file(file, overwrite=True) as partial:
                partial.write_text("".join(f"{line}\n" for line in former))
            self._file = file.open("a")
            board = self._folder.path / "tensorboard"
            self._board = SummaryWriter(str(board), purge_step=first_step + 1)
            self._wandb = None
            if wandb_project:
                self._wandb = _start_wandb(folder, self._folder.path, wandb_project, settings)

    def former(self, name: str) -> dict[int, float]:
        """Values of a metric by update, of earlier starts of the run."""
        return {line["step"]: line[name] for line in self._former if name in line}

    def evaluated(self, step: int) -> bool:
        """Whether an earlier start of the run wrote figures of an evaluation after `step`."""
        return bool(self.evaluation(step))

    def evaluation(self, step: int) -> dict[str, float]:
        """Figures of the evaluation after `step` by an earlier start of the run, if any."""
        return {
            name.removeprefix("eval/"): value
            for line in self._former
            if line["step"] == step
            for name, value in line.items()
            if name.startswith("eval/")
        }

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line, to disk at once; into a bucket about every minute."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)
        self._folder.push(_PUSH_EVERY)

    def flush(self) -> None:
        """Brings all to where it belongs; before a checkpoint, which a run goes on from."""
        if self._writes:
            self._board.flush()
            self._folder.push()

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self._file.close()
            self._board.close()
            if self._wandb:
                self._wandb.finish()
            self._folder.push()


def _lines(path: epath.Path, last_step: int) -> list[str]:
    return [
        line
        for line in (path.read_text().splitlines() if path.exists() else [])
        # A line cut short by a kill belongs to an update after the checkpoint.
        if line.endswith("}") and json.loads(line)["step"] <= last_step
    ]


def _start_wandb(
    folder: epath.Path, local: Path, project: str, settings: Mapping[str, Any] | None
) -> Any:
    """A run of Weights & Biases, the same one whenever the work folder is the same."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"wandb_project is {project!r}, but {error.name!r} is missing: pip install wandb, or "
            "leave the setting empty"
        ) from None
    number = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return wandb.init(
        project=project,
        dir=str(local),
        id=number,
        name=folder.name,
        resume="allow",
        config=dict(settings or {}),
    )
