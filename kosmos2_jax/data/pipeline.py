"""The training batches: a seqio mixture, converted, batched, and resumable to the bit."""

from __future__ import annotations

import atexit
import io
import re
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.converter import Kosmos2FeatureConverter
from kosmos2_jax.errors import CheckpointError, ConfigError

Batch = dict[str, np.ndarray]

# TensorFlow reads data here and nothing else; it must not take the accelerator from JAX.
tf.config.set_visible_devices([], "GPU")

# How TensorFlow says that an example does not fit the converter's shapes.
_TOO_LONG = re.compile(r"Paddings must be non-negative: 0 -(\d+)")


class TrainBatches(Iterator[Batch]):
    """Endless batches of NumPy arrays, with a place that can be saved and restored."""

    def __init__(self, dataset: tf.data.Dataset, shard_id: int = 0, num_shards: int = 1) -> None:
        """Begins at the beginning of a dataset of batches; see `train_batches`."""
        self._iterator: Iterator[Mapping[str, tf.Tensor]] | None = iter(dataset)
        self._shard = f"shard-{shard_id}-of-{num_shards}"
        _running.add(self)

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          ConfigError: an example is longer than the batches are.
        """
        if self._iterator is None:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except tf.errors.InvalidArgumentError as error:
            missing = _TOO_LONG.search(str(error))
            if missing is None:
                raise
            raise ConfigError(
                f"An example needs {missing[1]} more tokens or pictures than a row has: raise "
                "the length of sequences or the number of pictures."
            ) from error.with_traceback(None)  # its frames would keep the threads alive
        return {name: value.numpy() for name, value in batch.items()}

    def get_state(self) -> bytes:
        """The place in the data: a few megabytes, for there are examples read ahead."""
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            tf.train.Checkpoint(iterator=self._iterator).write(f"{folder}/{self._shard}")
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in sorted(Path(folder).iterdir()):
                    archive.write(file, file.name)
        return buffer.getvalue()

    def set_state(self, state: bytes) -> None:
        """Goes on where `get_state` was called; the next batches are the same to the bit.

        Raises:
          CheckpointError: it is not the state of this shard of as many.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(io.BytesIO(state)) as archive:
                    archive.extractall(folder)
            except zipfile.BadZipFile:
                raise CheckpointError("The saved place in the data is damaged.") from None
            if not Path(folder, f"{self._shard}.index").exists():
                raise CheckpointError(
                    f"The saved place in the data is not that of {self._shard}: resume with as "
                    "many data shards as it was saved with."
                )
            tf.train.Checkpoint(iterator=self._iterator).read(f"{folder}/{self._shard}")

    def close(self) -> None:
        """Ends the threads that read ahead; the batches end here."""
        self._iterator = None


_running: weakref.WeakSet[TrainBatches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # Threads that are in a Python preprocessor when the interpreter ends crash or hang it.
    for batches in list(_running):
        batches.close()


def train_batches(
    mixture: str,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    *,
    image_size: int,
    pad_id: int = 1,
    split: str = "train",
    shard_id: int = 0,
    num_shards: int = 1,
    threads: int = 1,
) -> TrainBatches:
    """Endless shuffled batches of a registered mixture or task.

    Args:
      mixture: name of a seqio mixture or task.
      lengths: see `kosmos2_jax.data.features.feature_lengths`.
      batch_size: rows of one shard's batch.
      seed: of order and mixing; the same seed gives the same batches.
      image_size: pixels a side.
      pad_id: token behind the end of a sequence.
      split: which split to read.
      shard_id: which share of the data, counted from 0.
      num_shards: how many shares there are, along the data axis of the mesh.
      threads: that read ahead.

    Returns:
      Batches of the features of `Kosmos2FeatureConverter`, each with a leading batch axis.
    """
    dataset = seqio.get_dataset(
        mixture,
        lengths,
        Kosmos2FeatureConverter(image_size, pad_id),
        dataset_split=split,
        shuffle=True,
        num_epochs=None,
        shard_info=seqio.ShardInfo(shard_id, num_shards),
        verbose=False,
        seed=seed,
        # Cutting tokens and pictures on their own would part them from each other.
        trim_output_features=False,
    )
    dataset = dataset.batch(batch_size, drop_remainder=True)
    options = tf.data.Options()
    options.deterministic = True
    # The training step needs the cores more than reading does.
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = threads > 1
    return TrainBatches(dataset.prefetch(2).with_options(options), shard_id, num_shards)
