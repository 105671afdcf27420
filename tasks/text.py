"""seqio tasks over plain text (spec section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kosmos2_jax.data import document_tasks, text_lines
from kosmos2_jax.data.document_tasks import Documents, TaskSettings
from kosmos2_jax.data.encode_document import Features
from kosmos2_jax.data.skips import Skips

# Sequences run across the documents of a chunk; what is left at its end is shorter.
_CHUNK = 128


def register(
    name: str, folders: Sequence[str], settings: TaskSettings, *, across_documents: bool = True
) -> None:
    """Adds a task over documents of kind "text", in place of any of the same name.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`.
      settings: how documents become examples.
      across_documents: whether sequences are filled with document after document, as in the
        released loader (spec section 4.2); the papers' numbers of samples count such sequences.
        Otherwise each document has sequences of its own.
    """
    encode = _pack if across_documents else document_tasks.encode_each
    document_tasks.add_task(name, folders, settings, ("text",), encode, chunk=_CHUNK)


def _pack(documents: Documents, settings: TaskSettings, skips: Skips) -> Iterator[Features]:
    return text_lines.pack_texts(
        (document for document, _ in documents),
        settings.vocabulary,
        settings.encode.max_tokens,
        skips,
    )
