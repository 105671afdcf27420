"""seqio tasks over pictures with captions, without boxes (spec section 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from kosmos2_jax.data import document_tasks
from kosmos2_jax.data.document_tasks import Documents, TaskSettings
from kosmos2_jax.data.encode_document import Features
from kosmos2_jax.data.skips import Skips


def register(name: str, folders: Sequence[str], settings: TaskSettings) -> None:
    """Adds a task over documents of kind "caption", in place of any of the same name.

    Those of kind "grounded" are read too, as captions without boxes: the "original captions" of
    the paper are those of its grounded pairs (spec sections 4.5 and 4.6).

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples.
    """
    document_tasks.add_task(name, folders, settings, ("caption", "grounded"), _encode)


def _encode(documents: Documents, settings: TaskSettings, skips: Skips) -> Iterator[Features]:
    plain = ((dataclasses.replace(document, kind="caption"), n) for document, n in documents)
    return document_tasks.encode_each(plain, settings, skips)
