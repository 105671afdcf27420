"""The data of a run: prepared, registered, and opened as batches."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from pathlib import Path

from etils import epath

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import PackedBatches, packed_batches
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.files import as_path, in_bucket
from kosmos2_jax.training.processes import WHOLE, DataShard, first_then_others
from kosmos2_jax.training.run_config import RunConfig


def prepare_data(run: RunConfig, workdir: epath.PathLike) -> tuple[str, Kosmos2Vocabulary]:
    """Makes what is missing of the run's data, on process 0; then registers it on all.

    Returns:
      The name of the training mixture, and the vocabulary.

    Raises:
      ConfigError: there is no such module of tasks, or the data would lie in a bucket.
    """
    ours, own = f"kosmos2_jax.tasks.{run.data.tasks}", run.data.tasks
    module = next(filter(_is_there, (ours, own)), None)
    if module is None:
        raise ConfigError(f"data.tasks names no module: there is neither {ours} nor {own}")
    place = as_path(run.data.folder or as_path(workdir) / "data")
    if in_bucket(place):
        raise ConfigError(
            f"the data would lie in {place}, and they are read from disks only; set data.folder to "
            "a disk that all hosts share"
        )
    folder = Path(place)
    prepare = importlib.import_module(module).prepare
    return first_then_others(lambda: prepare(folder, run.data, run.model, run.seed))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a package around it is missing; no name at all
        return False


def open_batches(
    run: RunConfig,
    mixture: str,
    batch_size: int,
    shard: DataShard = WHOLE,
    *,
    pack: bool,
    split: str = "train",
) -> PackedBatches:
    """Endless batches of a mixture or task, from the beginning; shuffled for training.

    Args:
      run: settings.
      mixture: name of a mixture or task.
      batch_size: rows over all shards.
      shard: the part that is read here; by default all.
      pack: whether examples share rows.
      split: which split to read.
    """
    data = run.data
    return packed_batches(
        mixture,
        feature_lengths(data.length, data.images),
        batch_size // shard.count,
        run.seed,
        image_size=run.model.vision.image_size,
        pack=pack,
        open_rows=data.open_rows,
        image_mode=data.image_mode,
        split=split,
        shuffle=split == "train",
        num_streams=data.streams,
        threads=data.threads,
        shard_id=shard.number,
        num_shards=shard.count,
    )


def with_vocabulary(run: RunConfig, vocabulary: Kosmos2Vocabulary) -> RunConfig:
    """Fills in a vocabulary size of 0; any other must be the tokenizer's."""
    size = run.model.decoder.vocab_size
    if size not in (0, vocabulary.vocab_size):
        raise ConfigError(
            f"model.decoder.vocab_size is {size}, the data's tokenizer has "
            f"{vocabulary.vocab_size} tokens; set 0 to take its size"
        )
    model = run.model.replace(decoder={"vocab_size": vocabulary.vocab_size})
    return dataclasses.replace(run, model=model)
