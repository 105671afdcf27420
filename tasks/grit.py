"""seqio tasks over GRIT: captions whose phrases point at boxes (spec section 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kosmos2_jax.data import document_tasks
from kosmos2_jax.data.document_tasks import TaskSettings


def register(
    name: str,
    folders: Sequence[str],
    settings: TaskSettings,
    *,
    grounding_probability: float | None = None,
) -> None:
    """Adds a task over documents of kind "grounded", in place of any of the same name.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples; what is chosen of annotations is in `encode.grit`.
      grounding_probability: instead of that of the settings, as where plain captions are a task
        of their own.

    Raises:
      ConfigError: it is no probability.
    """
    if grounding_probability is not None:
        grit = dataclasses.replace(
            settings.encode.grit, grounding_probability=grounding_probability
        )
        encode = dataclasses.replace(settings.encode, grit=grit)
        settings = dataclasses.replace(settings, encode=encode)
    document_tasks.add_task(name, folders, settings, ("grounded",))
