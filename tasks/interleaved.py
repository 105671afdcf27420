"""seqio tasks over pages of text and pictures in turn (spec section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence

from kosmos2_jax.data import document_tasks
from kosmos2_jax.data.document_tasks import TaskSettings


def register(name: str, folders: Sequence[str], settings: TaskSettings) -> None:
    """Adds a task over documents of kind "interleaved", in place of any of the same name.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples.
    """
    document_tasks.add_task(name, folders, settings, ("interleaved",))
