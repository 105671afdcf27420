"""Predictions that an evaluation leaves in its work folder and goes on from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from etils import epath

from kosmos2_jax.evaluation.predictions import Prediction, PredictionFile, Predictions
from kosmos2_jax.interop.files import in_bucket
from kosmos2_jax.training.local_folder import LocalFolder
from kosmos2_jax.training.processes import is_first

# Seconds between copies of the file into a bucket; lines on a disk are there at once.
_PUSH_EVERY = 60.0


@contextlib.contextmanager
def saved_predictions(folder: epath.Path | None, task: str) -> Iterator[Predictions]:
    """The predictions of a task: those in `folder/TASK.jsonl`, which also gets new ones.

    Args:
      folder: on a disk or in a bucket; None for predictions that are not saved, as are those of
        all processes but the first.
      task: its name.

    Raises:
      PredictionError: the file is being written by another program, or holds something else.
    """
    if folder is None or not is_first():
        yield Predictions()
        return
    local, name = LocalFolder(folder), f"{task}.jsonl"
    if in_bucket(folder) and (folder / name).exists():
        (local.path / name).write_bytes((folder / name).read_bytes())
    file = _PushedFile(local, name, task)
    try:
        yield file
    finally:
        file.close()
        local.push()


class _PushedFile(PredictionFile):
    def __init__(self, folder: LocalFolder, name: str, task: str) -> None:
        super().__init__(folder.path / name, task)
        self._folder = folder

    def add(self, predictions: Iterable[Prediction]) -> None:
        super().add(predictions)
        self._folder.push(_PUSH_EVERY)
