"""Metrics to a JSONL file and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class MetricLog:
    """Writes scalars by update; what a resumed run will write again is removed first."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Opens `folder/metrics.jsonl` and TensorBoard's files beside it.

        Args:
          folder: created if missing.
          first_step: lines of later updates are dropped (a run was killed after its checkpoint).
        """
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [
            line
            for line in (path.read_text().splitlines() if path.exists() else [])
            # A line cut short by a kill belongs to an update after the checkpoint.
            if line.endswith("}") and json.loads(line)["step"] <= first_step
        ]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(path)  # a kill at this moment must not lose the lines of days
        self._former = [json.loads(line) for line in kept]
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def former(self, name: str) -> dict[int, float]:
        """Values of a metric by update, of earlier starts of the run."""
        return {line["step"]: line[name] for line in self._former if name in line}

    def evaluated(self, step: int) -> bool:
        """Whether an earlier start of the run wrote figures of an evaluation after `step`."""
        return any(
            line["step"] == step and any(name.startswith("eval/") for name in line)
            for line in self._former
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line, to disk at once."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()
