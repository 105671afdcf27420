"""The data of a run: prepared, registered, and opened as batches."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import seqio
from etils import epath

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.data.data_config import DataConfig, RehearsalConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import PackedBatches, packed_batches
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.checkpoint import NO_REPEAT_NGRAM_SIZE
from kosmos2_jax.interop.convert import describe
from kosmos2_jax.interop.files import TOKENIZER_MODEL, as_path, in_bucket
from kosmos2_jax.training.processes import WHOLE, DataShard, first_then_others
from kosmos2_jax.training.run_config import RunConfig

WITH_OLD = "with_rehearsal"
_Prepare = Callable[[Path, DataConfig, Kosmos2Config, int], tuple[str, Kosmos2Vocabulary]]


def like_checkpoint(run: RunConfig) -> RunConfig:
    """The run with the architecture of its checkpoint, where `init_from.architecture` asks for it.

    Raises:
      CheckpointError: there is no checkpoint of a whole model.
    """
    if not run.init_from.architecture:
        return run
    found = describe(run.init_from.path)
    ours, theirs = run.model, found.config
    model = theirs.replace(
        scan_layers=ours.scan_layers,
        dtype=ours.dtype,
        attention=ours.attention,
        remat=ours.remat,
        resampler={"attention_dropout": ours.resampler.attention_dropout},
        decoder={
            "dropout": ours.decoder.dropout,
            "vocab_multiple": ours.decoder.vocab_multiple,
        },
    )
    size = found.generation[NO_REPEAT_NGRAM_SIZE]
    return dataclasses.replace(run, model=model, no_repeat_ngram_size=size)


def prepare_data(run: RunConfig, workdir: epath.PathLike) -> tuple[str, Kosmos2Vocabulary]:
    """Makes what is missing of the run's data, on process 0; then registers it on all.

    With `data.rehearsal` the old data are prepared too, and mixed in.

    Returns:
      The name of the training mixture, and the vocabulary.

    Raises:
      ConfigError: there is no such module of tasks, the data would lie in a bucket, or the old data
        have another tokenizer.
    """
    folder, old = _place(run.data.folder, workdir), run.data.rehearsal
    prepare = _preparation(run.data.tasks, "data.tasks")
    if not old.share:
        return first_then_others(lambda: _prepare_own(run, folder, prepare))
    prepare_old = _preparation(old.tasks, "data.rehearsal.tasks", "prepare_old")
    old_folder = _place(old.folder, workdir)

    def prepare_both() -> tuple[str, Kosmos2Vocabulary]:
        mixture, vocabulary = _prepare_own(run, folder, prepare)
        data = dataclasses.replace(
            run.data,
            tasks=old.tasks,
            folder=old.folder,
            mixture=old.mixture,
            rates=old.rates,
            boxes="",
            tokenizer=str(vocabulary.model_file),
            rehearsal=RehearsalConfig(),
        )
        old_mixture, theirs = prepare_old(old_folder, data, run.model, run.seed)
        if theirs.tokens != vocabulary.tokens:
            raise ConfigError(
                f"the old data in {old_folder} have another tokenizer than the new ones; set "
                "data.tokenizer to that of the model"
            )
        return _mix(mixture, old_mixture, old.share), vocabulary

    return first_then_others(prepare_both)


def _prepare_own(run: RunConfig, folder: Path, prepare: _Prepare) -> tuple[str, Kosmos2Vocabulary]:
    if run.init_from.architecture and not run.data.tokenizer:
        _take_tokenizer(run, folder)
    return prepare(folder, run.data, run.model, run.seed)


def _take_tokenizer(run: RunConfig, folder: Path) -> None:
    """Puts the checkpoint's tokenizer where that of the data is looked for."""
    file = folder / TOKENIZER_MODEL
    vocabulary = describe(run.init_from.path).vocabulary
    if vocabulary is None:
        return
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(vocabulary.model_bytes)
    elif file.read_bytes() != vocabulary.model_bytes:
        raise ConfigError(
            f"{file} is another tokenizer than that of {run.init_from.path}; remove it, or set "
            "data.tokenizer to the one that is meant"
        )


def _mix(mixture: str, old: str, share: float) -> str:
    """Registers a mixture of new data and a share of old ones, by examples."""
    if WITH_OLD in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(WITH_OLD)
    parts = ((mixture, 1.0 - share), (old, share))
    rates = [pair for name, part in parts for pair in _rates(name, part)]
    seqio.MixtureRegistry.add(WITH_OLD, rates)
    return WITH_OLD


def _rates(mixture: str, share: float) -> list[tuple[str, float]]:
    """The tasks of a mixture with rates that sum up to `share`."""
    provider = seqio.get_mixture_or_task(mixture)
    if isinstance(provider, seqio.Task):
        return [(mixture, share)]
    rates = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
    return [(name, share * rate / sum(rates.values())) for name, rate in rates.items()]


def _place(folder: str, workdir: epath.PathLike) -> Path:
    place = as_path(folder or as_path(workdir) / "data")
    if in_bucket(place):
        raise ConfigError(
            f"the data would lie in {place}, and they are read from disks only; set data.folder to "
            "a disk that all hosts share"
        )
    return Path(place)


def _preparation(tasks: str, setting: str, name: str = "prepare") -> _Prepare:
    ours = f"kosmos2_jax.tasks.{tasks}"
    module = next(filter(_is_there, (ours, tasks)), None)
    if module is None:
        raise ConfigError(f"{setting} names no module: there is neither {ours} nor {tasks}")
    found = importlib.import_module(module)
    return getattr(found, name, found.prepare)


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
