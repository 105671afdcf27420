"""The papers' benchmarks as tasks, from a folder with a folder for each of them.

`data.tasks=benchmarks` and `data.folder=DIR`: each of the folders in DIR has the name of a
benchmark (`tools/prepare_eval.py --help` lists them) and holds its download. A task is a split:
"refcoco_testA".
"""

from __future__ import annotations

from pathlib import Path

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

from . import captioning, choices, naming, phrase_grounding, questions, referring


def prepare(
    folder: Path, data: DataConfig, model: Kosmos2Config, seed: int
) -> tuple[str, Kosmos2Vocabulary]:
    """Registers the tasks; their files are read when they are evaluated.

    Args:
      folder: see the module.
      data: says where the tokenizer is.
      model: whose pictures and grid the examples are for.
      seed: not needed, as benchmarks leave nothing to chance.

    Returns:
      No mixture to train on, and the vocabulary.
    """
    tokenizer = data.tokenizer or str(Path(folder) / "sentencepiece.bpe.model")
    vocabulary = Kosmos2Vocabulary(tokenizer, model.grid_size)
    register(folder, TaskSettings(vocabulary, data.encode_settings(model), seed))
    return "", vocabulary


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds the tasks over `folder` to seqio, in place of any of the same names; gives these."""
    modules = (phrase_grounding, referring, captioning, questions, choices, naming)
    return tuple(name for module in modules for name in module.register(Path(folder), settings))
