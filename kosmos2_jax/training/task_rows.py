"""Examples of a task as batches of rows, of which each process prepares its share."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.choices import FEATURES
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.training.processes import DataShard

# What stands for the number of an example in a row that only fills the batch up.
NO_EXAMPLE = -1


class TaskRows(NamedTuple):
    """A batch of examples, or what fills it up.

    Attributes:
      numbers: of the examples, -1 where there is none; int32 [B].
      broken: whether a picture could not be read; bool [B].
      pictures: of a row at most.
      features: of the feature converter; where examples have candidates, those too.
    """

    numbers: np.ndarray
    broken: np.ndarray
    pictures: int
    features: Mapping[str, np.ndarray]


class TaskReader:
    """Reads tasks. The first examples of one, where no more are asked, are kept for later."""

    def __init__(
        self,
        lengths: Mapping[str, int],
        split: str,
        shard: DataShard,
        batch_size: int,
        image_size: int,
        num_latents: int,
    ) -> None:
        """Reads nothing yet.

        Args:
          lengths: `kosmos2_jax.data.features.feature_lengths`.
          split: which split to read.
          shard: the rows of a batch that this process prepares.
          batch_size: rows of a batch, over all processes.
          image_size: pixels a side.
          num_latents: slots of a picture.
        """
        self._lengths, self._split = dict(lengths), split
        self._shard, self._batch_size = shard, batch_size
        self._image_size, self._num_latents = image_size, num_latents
        self._share = functools.cache(self._read_share)

    def __call__(self, name: str, limit: int, done: Set[int]) -> Iterator[TaskRows]:
        """Batches of one shape and so one compilation; without end.

        Others may have examples left when this process has none.

        Args:
          name: of the task.
          limit: examples at most, the first ones; 0 for all.
          done: numbers of batches to leave out. The others are the same ones whatever is done.
        """
        share = self._share(name, limit)
        if done:
            left_out = tf.constant(sorted(done), tf.int64)
            share = share.filter(
                lambda number, _: tf.reduce_all(left_out != number // self._batch_size)
            )
        size = self._batch_size // self._shard.count
        rows = self._converter(share)(share.map(_second), self._lengths).batch(size).prefetch(1)
        last = {
            name: np.zeros((1, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
            for name, spec in rows.element_spec.items()
        }
        places = (place for place in itertools.count() if place not in done)
        for place, batch in zip(places, rows.as_numpy_iterator(), strict=False):
            count = len(batch["tokens"])
            last = {name: values[-1:] for name, values in batch.items()}
            filler = _repeated(last, size - count)
            features = {name: np.concatenate([batch[name], filler[name]]) for name in batch}
            numbers = np.full(size, NO_EXAMPLE, np.int32)
            first = place * self._batch_size + self._shard.number * size
            numbers[:count] = np.arange(first, first + count)
            yield self._rows(numbers, features)
        while True:
            yield self._rows(np.full(size, NO_EXAMPLE, np.int32), _repeated(last, size))

    def _read_share(self, name: str, limit: int) -> tf.data.Dataset:
        """The examples that this process prepares, each with its number."""
        examples = seqio.get_mixture_or_task(name).get_dataset(
            self._lengths, split=self._split, shuffle=False, num_epochs=1
        )
        share = self._batch_size // self._shard.count
        first = self._shard.number * share

        def mine(number: tf.Tensor, example: Any) -> tf.Tensor:
            place = number % self._batch_size
            return (place >= first) & (place < first + share)

        examples = examples.take(limit or -1).enumerate().filter(mine)
        # Encoded pictures are kept; they are decoded each time.
        return examples.cache() if limit else examples

    def _converter(self, share: tf.data.Dataset) -> PackingFeatureConverter:
        spec = share.element_spec[1]
        keep = {name: spec[name].dtype for name in FEATURES if name in spec}
        return PackingFeatureConverter(self._image_size, threads=os.cpu_count() or 1, keep=keep)

    def _rows(self, numbers: np.ndarray, features: Mapping[str, np.ndarray]) -> TaskRows:
        slots = self._num_latents
        pictures = int(features["image_slots"].max() + slots) // slots
        # An example of a broken picture has no weight left, see `decode_row`.
        return TaskRows(numbers, ~features["loss_weights"].any(axis=1), pictures, features)


def _second(_: Any, example: Any) -> Any:
    return example


def _repeated(row: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: np.repeat(value, count, axis=0) for name, value in row.items()}
