"""seqio tasks over instructions: of language, with pictures, and out of GRIT (spec section 4.7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kosmos2_jax.data import document_tasks
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.encode_document import INSTRUCTION


def register(name: str, folders: Sequence[str], settings: TaskSettings) -> None:
    """Adds a task over documents of kind "instruction", in place of any of the same name.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples.
    """
    document_tasks.add_task(name, folders, settings, ("instruction",))


def register_grounded(name: str, folders: Sequence[str], settings: TaskSettings) -> None:
    """Adds a task that derives grounded instructions from documents of kind "grounded".

    One phrase of each is drawn: either its boxes are asked for, or its expression.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples; see `encode.comprehension_probability`.
    """
    encode = dataclasses.replace(settings.encode, grounded_as=INSTRUCTION)
    settings = dataclasses.replace(settings, encode=encode)
    document_tasks.add_task(name, folders, settings, ("grounded",))
