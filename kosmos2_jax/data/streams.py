"""Streams: the fixed number of parts that the data of a run are dealt to.

A stream is a data pipeline of its own, with its own files, shuffling, mixing and packing. Shards
only divide the streams among them, so that the place in the data is the places of the streams,
whoever reads them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import itertools
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.packing import SKIP_REASONS
from kosmos2_jax.data.packing_converter import NOTE
from kosmos2_jax.data.skips import DataError, Skips
from kosmos2_jax.errors import CheckpointError, ConfigError, Kosmos2Error

Row = dict[str, np.ndarray]  # as PackingFeatureConverter(decode=False) makes them

# How TensorFlow says that an example does not fit a row of its own, and that Python gave up.
_TOO_LONG = re.compile(r"Paddings must be non-negative: 0 -(\d+)")
_GAVE_UP = re.compile(r"(DataError|ConfigError|CheckpointError): (.*)")
_ERRORS = {"DataError": DataError, "ConfigError": ConfigError, "CheckpointError": CheckpointError}

_SEED_STEP = 1_000_003  # between the seeds of neighbouring streams


@dataclasses.dataclass(frozen=True)
class Share:
    """Which streams a shard reads, and which of their rows.

    With no more shards than streams, a shard has streams of its own. With more, some share a
    stream: each reads all of it and keeps every so-manieth row.

    Attributes:
      streams: numbers of the streams, from 0.
      every: how many shards share the stream.
      offset: which of `every` rows is this shard's, from 0.
    """

    streams: tuple[int, ...]
    every: int = 1
    offset: int = 0

    @classmethod
    def of(cls, shard_id: int, num_shards: int, num_streams: int) -> Share:
        """The share of shard `shard_id`, from 0, of `num_shards`.

        Raises:
          ConfigError: there is no such shard, or no stream.
        """
        if not 0 <= shard_id < num_shards or num_streams < 1:
            raise ConfigError(
                f"There is no data shard {shard_id} of {num_shards} with {num_streams} streams."
            )
        if num_shards <= num_streams:
            return cls(tuple(range(shard_id, num_streams, num_shards)))
        stream = shard_id % num_streams
        return cls((stream,), len(range(stream, num_shards, num_streams)), shard_id // num_streams)


def stream_dataset(
    provider: seqio.Task | seqio.Mixture,
    lengths: Mapping[str, int],
    converter: seqio.FeatureConverter,
    stream: int,
    num_streams: int,
    *,
    split: str,
    seed: int,
    shuffle: bool = True,
    num_epochs: int | None = None,
) -> tf.data.Dataset:
    """The rows of one stream of a task or mixture.

    As `seqio.get_dataset`, but that each stream mixes by draws of its own (with one seed for all,
    every stream would draw from the same task at the same time, and batches would vary that much
    more in what they hold), that small sources are never kept in memory (pictures would fill it),
    and that all tasks are read to their ends where `num_epochs` ends them.

    Args:
      provider: a seqio task or mixture.
      lengths: see `kosmos2_jax.data.features.feature_lengths`.
      converter: makes rows.
      stream: number of the stream, from 0.
      num_streams: how many there are. A task of fewer files is read by every stream as a whole.
      split: which split to read; tasks without it are left out.
      seed: of order and mixing.
      shuffle: whether files and examples are shuffled.
      num_epochs: times that each task is read, None for ever.

    Raises:
      DataError: no task has the split.
    """
    tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    tasks = [task for task in tasks if split in task.splits]
    if not tasks:
        raise DataError(f"No task of {provider.name!r} has a split {split!r}.")
    own_seed = seed + _SEED_STEP * stream

    def read(task: seqio.Task) -> tf.data.Dataset:
        by_file = len(task.source.list_shards(split)) >= num_streams
        dataset = task.get_dataset(
            lengths,
            split,
            shuffle=shuffle,
            # Streams that read the same files must read them in the same order.
            seed=own_seed if by_file else seed,
            shard_info=seqio.ShardInfo(stream, num_streams),
            num_epochs=num_epochs,
            # Cutting tokens and pictures on their own would part them from each other.
            trim_output_features=False,
            try_in_mem_cache=False,
        )

        def choose(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            # Where there is a note this is no work: TensorFlow only hands on.
            note = features[NOTE] if NOTE in features else tf.constant(write_note(task.name))
            return {**{name: features[name] for name in task.output_features}, NOTE: note}

        return dataset.map(choose)

    if len(tasks) == 1:
        mixed = read(tasks[0])
    else:
        rates = np.array([provider.get_rate(task) for task in tasks], np.float64)
        mix = tf.data.Dataset.sample_from_datasets if num_epochs is None else _mix_to_the_ends
        mixed = mix([read(task) for task in tasks], rates / rates.sum(), own_seed)
    return converter(mixed, lengths)


def _mix_to_the_ends(
    datasets: Sequence[tf.data.Dataset], rates: np.ndarray, seed: int
) -> tf.data.Dataset:
    """As `sample_from_datasets`, for datasets that end.

    That one, restored to a place after the end of one of its datasets, hangs at the end of the
    others (TensorFlow 2.21). So none of them ends here: each goes on with marks that it has.
    """

    def marked(number: int, dataset: tf.data.Dataset) -> tf.data.Dataset:
        nothing = {
            name: tf.zeros([side or 0 for side in spec.shape], spec.dtype)
            for name, spec in dataset.element_spec.items()
        }
        mark = tf.data.Dataset.from_tensors((nothing, number)).repeat()
        return dataset.map(lambda example: (example, -1)).concatenate(mark)

    def note(ended: tf.Tensor, marked: Any) -> tuple[tf.Tensor, tuple[Any, tf.Tensor]]:
        ended |= tf.one_hot(marked[1], len(datasets), True, False)
        return ended, (marked, tf.reduce_all(ended))

    marked_ones = [marked(number, dataset) for number, dataset in enumerate(datasets)]
    mixed = tf.data.Dataset.sample_from_datasets(marked_ones, rates, seed)
    mixed = mixed.scan(tf.zeros(len(datasets), tf.bool), note)
    mixed = mixed.take_while(lambda _, all_ended: not all_ended)
    mixed = mixed.filter(lambda marked, _: marked[1] < 0)
    return mixed.map(lambda marked, _: marked[0])


def write_note(task: str, counts: Skips | None = None) -> bytes:
    """What a task's example may have as the feature `NOTE`.

    Args:
      task: its name.
      counts: what was counted since the last example.
    """
    return f"{task}\t{json.dumps(counts.to_dict()) if counts else ''}".encode()


@functools.lru_cache(maxsize=1024)
def _read_counts(counts: str) -> Skips:
    """What `write_note` wrote, not to be changed; most notes of a source are the same."""
    return Skips.from_dict(json.loads(counts))


@dataclasses.dataclass
class Tally:
    """What came of a stream so far.

    Attributes:
      examples: delivered in rows.
      broken: of these, how many were blanked for a broken picture.
      skipped: examples that the packer skipped, by `SKIP_REASONS`.
      tasks: by name of a task, its examples and their tokens in rows that were delivered.
      documents: what the tasks counted on the way to these rows.
    """

    examples: int = 0
    broken: int = 0
    skipped: list[int] = dataclasses.field(default_factory=lambda: [0] * len(SKIP_REASONS))
    tasks: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    documents: Skips = dataclasses.field(default_factory=Skips)

    def deliver(self, row: Row, broken: int) -> None:
        """Counts a row, of which so many examples were blanked."""
        tokens = np.bincount(row["segment_ids"])[1:].tolist()
        self.examples += len(tokens)
        self.broken += broken
        self.skipped = row["counts"][1:].tolist()
        for note, size in zip(row["notes"].decode().split("\n"), tokens, strict=True):
            task, _, counts = note.partition("\t")
            so_far = self.tasks.get(task, [0, 0])
            self.tasks[task] = [so_far[0] + 1, so_far[1] + size]
            if counts:
                self.documents.merge(_read_counts(counts))

    def take_over(self, other: Tally) -> None:
        """Adds what another shard of the same stream has delivered."""
        self.examples += other.examples
        self.broken += other.broken
        self.skipped = max(self.skipped, other.skipped, key=sum)
        for task, (examples, tokens) in other.tasks.items():
            so_far = self.tasks.get(task, [0, 0])
            self.tasks[task] = [so_far[0] + examples, so_far[1] + tokens]
        self.documents.merge(other.documents)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        names = ("examples", "broken", "skipped", "tasks")
        return {n: getattr(self, n) for n in names} | {"documents": self.documents.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """Reads what `to_dict` gave."""
        return cls(**{**data, "documents": Skips.from_dict(data["documents"])})


class Stream:
    """The rows of a stream, with a place that can be saved and restored.

    Attributes:
      tally: kept by whoever delivers the rows.
    """

    def __init__(self, number: int, dataset: tf.data.Dataset) -> None:
        """Begins at the beginning; `number` names the stream in saved places."""
        self.tally = Tally()
        self._number = number
        self._iterator: Iterator[Mapping[str, tf.Tensor]] = iter(dataset)
        self._read_before: collections.deque[Row] = collections.deque()

    def pull(self, count: int) -> list[Row]:
        """The next rows, fewer only where the data end.

        Raises:
          ConfigError: an example is longer than a row and rows hold one each.
          DataError: no example fits into a row, or a task's own.
        """
        try:
            return list(itertools.islice(self._rows(), count))
        except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
            # The frames of these errors would keep the reading threads alive.
            if found := python_error(error):
                raise found from error.with_traceback(None)
            raise

    def _rows(self) -> Iterator[Row]:
        while self._read_before:
            yield self._read_before.popleft()
        for row in self._iterator:
            # Of notes, one string of bytes; of all else arrays.
            yield {name: value.numpy() for name, value in row.items()}

    def save(self, archive: zipfile.ZipFile, undelivered: Sequence[Row]) -> None:
        """Writes the place before the rows that were pulled last but not delivered."""
        rows = _rows_to_bytes([*undelivered, *self._read_before])
        archive.writestr(f"{self._number}/rows.npz", rows)
        with tempfile.TemporaryDirectory() as folder:
            tf.train.Checkpoint(iterator=self._iterator).write(f"{folder}/place")
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, f"{self._number}/{file.name}")

    def restore(self, archive: zipfile.ZipFile) -> None:
        """Goes back to a saved place.

        Raises:
          CheckpointError: it is the place of another pipeline.
        """
        prefix = f"{self._number}/"
        with tempfile.TemporaryDirectory() as folder:
            for name in archive.namelist():
                if name.startswith(f"{prefix}place."):
                    Path(folder, name.removeprefix(prefix)).write_bytes(archive.read(name))
            try:
                tf.train.Checkpoint(iterator=self._iterator).read(f"{folder}/place")
            except (tf.errors.OpError, ValueError) as error:
                first = str(error).strip().splitlines()[0]
                raise CheckpointError(
                    f"The saved place in the data is that of other data ({first}): resume with "
                    "the sources and settings it was saved with."
                ) from error.with_traceback(None)
        self._read_before = collections.deque(_rows_from_bytes(archive.read(f"{prefix}rows.npz")))


def python_error(error: tf.errors.OpError) -> Kosmos2Error | None:
    """Returns what a user can mend of what TensorFlow raised; None if that is nothing."""
    if missing := _TOO_LONG.search(str(error)):
        return ConfigError(
            f"An example needs {missing[1]} more tokens or pictures than a row has: raise the "
            "length of sequences or the number of pictures."
        )
    if reason := _GAVE_UP.search(str(error)):
        return _ERRORS[reason[1]](reason[2])
    return None


def _rows_to_bytes(rows: Sequence[Row]) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows):
        arrays |= {f"{number}/{name}": values for name, values in row.items() if name != "images"}
        arrays[f"{number}/bytes"] = np.frombuffer(b"".join(row["images"]), np.uint8)
        arrays[f"{number}/ends"] = np.cumsum(
            [len(image) for image in row["images"]], dtype=np.int64
        )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _rows_from_bytes(data: bytes) -> list[Row]:
    rows: dict[str, Row] = {}
    with np.load(io.BytesIO(data)) as arrays:
        for key in arrays.files:
            number, name = key.split("/")
            rows.setdefault(number, {})[name] = arrays[key]
    for row in rows.values():
        images, ends = row.pop("bytes").tobytes(), row.pop("ends").tolist()
        pairs = itertools.pairwise([0, *ends])
        row["images"] = np.array([images[start:end] for start, end in pairs], object)
        row["notes"] = row["notes"].item()
    return list(rows.values())
