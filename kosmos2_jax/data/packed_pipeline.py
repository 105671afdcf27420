"""Batches of packed rows: shared out to any number of shards, and resumable to the bit.

The data of a run are dealt once and for all to streams (`kosmos2_jax.data.streams`), and shards
divide the streams among them. On another number of shards the same streams go on where they were,
so that nothing is repeated and nothing lost.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import json
import logging
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.grit import CROP
from kosmos2_jax.data.packing import SEQUENCES, SKIP_REASONS, RowLimits, make_row
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.pictures import BROKEN, decode_row
from kosmos2_jax.data.skips import DataError, Skips
from kosmos2_jax.data.streams import Row, Share, Stream, Tally, stream_dataset
from kosmos2_jax.errors import CheckpointError

Batch = dict[str, np.ndarray]

# TensorFlow reads data here and nothing else; it must not take the accelerator from JAX.
tf.config.set_visible_devices([], "GPU")

_log = logging.getLogger(__name__)
_AHEAD = 2  # batches that are decoded while another is trained on
_PLACE = "place.json"


@dataclasses.dataclass
class _Pending:
    """A batch whose pictures are being decoded.

    Attributes:
      turn: whose row was the first.
      pulled: stream and rows, also those that other shards of the same stream deliver.
      rows: stream and row of each row of the batch, in order.
      images: uint8 [B, N, S, S, 3], being written.
      broken: for each row, how many examples a broken picture spoilt.
    """

    turn: int
    pulled: list[tuple[int, list[Row]]]
    rows: list[tuple[int, Row]]
    images: np.ndarray
    broken: list[concurrent.futures.Future[int]]


class PackedBatches(Iterator[Batch]):
    """Batches of NumPy arrays, with a place that can be saved and restored."""

    def __init__(
        self,
        name: str,
        datasets: Mapping[int, tf.data.Dataset],
        limits: RowLimits,
        batch_size: int,
        image_size: int,
        *,
        num_streams: int = 1,
        shard_id: int = 0,
        num_shards: int = 1,
        image_mode: str = CROP,
        threads: int = 1,
    ) -> None:
        """Begins at the beginning of all streams; see `packed_batches`, which makes them.

        Args:
          name: of the mixture, for counts and messages.
          datasets: by number of stream, those of this shard's `Share`.
          limits: of a row.
          batch_size: rows of this shard's batch.
          image_size: pixels a side.
          num_streams: how many streams all shards have.
          shard_id: which share of the data, from 0.
          num_shards: how many there are.
          image_mode: see `kosmos2_jax.data.pictures.decode_picture`.
          threads: that decode pictures.
        """
        self._name = name
        self._share = Share.of(shard_id, num_shards, num_streams)
        self._streams = {number: Stream(number, datasets[number]) for number in self._share.streams}
        self._shard, self._num_streams = (shard_id, num_shards), num_streams
        self._limits = limits
        self._batch_size = batch_size
        self._image_size = image_size
        self._image_mode = image_mode
        self._turn = 0  # which of the share's streams gives the next row
        self._updates = 0  # batches delivered
        self._notes: list[bytes] = []  # of the rows of the last batch
        self._pending: collections.deque[_Pending] = collections.deque()
        self._decoders = concurrent.futures.ThreadPoolExecutor(threads)
        _running.add(self)

    def __next__(self) -> Batch:
        """The next batch; where the data end, rows that hold nothing fill up the last one.

        Raises:
          ConfigError: an example is longer than a row and rows hold one each.
          DataError: no example fits into a row, or there are none.
        """
        if not self._streams:
            raise StopIteration
        while len(self._pending) <= _AHEAD and self._begin():
            pass
        if self._pending:
            return self._finish(self._pending.popleft())
        if not any(stream.tally.examples for stream in self._streams.values()):
            raise DataError(f"{self._name!r} gives no examples: check its sources.")
        raise StopIteration

    def _begin(self) -> bool:
        """Reads the rows of one more batch and has them decoded; False if there are none."""
        order = self._share.streams
        turn, pulled, rows = self._turn, [], []
        dry = 0  # streams one after the other that had nothing
        while len(rows) < self._batch_size and dry < len(order):
            number = order[self._turn]
            self._turn = (self._turn + 1) % len(order)
            group = self._streams[number].pull(self._share.every)
            pulled.append((number, group))
            mine = group[self._share.offset : self._share.offset + 1]
            rows += [(number, row) for row in mine]
            dry = 0 if mine else dry + 1
        if not rows:
            return False
        shape = (self._batch_size, self._limits.images, self._image_size, self._image_size, 3)
        images = np.zeros(shape, np.uint8)
        broken = [
            self._decoders.submit(decode_row, row, pixels, self._image_mode)
            for (_, row), pixels in zip(rows, images, strict=False)
        ]
        self._pending.append(_Pending(turn, pulled, rows, images, broken))
        return True

    def _finish(self, pending: _Pending) -> Batch:
        for (number, row), broken in zip(pending.rows, pending.broken, strict=True):
            self._streams[number].tally.deliver(row, broken.result())
        self._updates += 1
        rows = [row for _, row in pending.rows]
        self._notes = [row["notes"] for row in rows]
        rows += [make_row((), self._limits)] * (self._batch_size - len(rows))
        batch = {name: np.stack([row[name] for row in rows]) for name in SEQUENCES}
        return {**batch, "images": pending.images}

    @property
    def shard(self) -> tuple[int, int]:
        """Which share of the data this is, from 0, and how many there are."""
        return self._shard

    def skips(self) -> Skips:
        """What was delivered, skipped and blanked since the beginning of the run.

        The counts of all shards add up to those of the data. What tasks counted stands under the
        names of their sources; what came of examples later, under that of the mixture.
        """
        skips = Skips()
        for tally in (stream.tally for stream in self._streams.values()):
            skips.merge(tally.documents)
            skips.kept(self._name, tally.examples - tally.broken)
            # Shards that share a stream all know what was skipped; the first reports it.
            skipped = tally.skipped if self._share.offset == 0 else []
            for reason, count in [
                (BROKEN, tally.broken),
                *zip(SKIP_REASONS, skipped, strict=False),
            ]:
                if count:
                    skips.count(self._name, reason, count)
        return skips

    def tasks(self) -> dict[str, tuple[int, int]]:
        """By name of a task, its examples and their tokens, delivered since the run began.

        They tell the realised proportions of a mixture; those of all shards add up.
        """
        found = Tally()
        for stream in self._streams.values():
            found.take_over(stream.tally)
        return {task: (examples, tokens) for task, (examples, tokens) in found.tasks.items()}

    def row_tasks(self) -> list[list[str]]:
        """Of each row of the batch that came last, the tasks of its examples, by segment.

        Rows that only fill up the last batch of the data are left out.
        """
        return [
            [note.partition("\t")[0] for note in notes.decode().split("\n")]
            for notes in self._notes
        ]

    def get_state(self) -> bytes:
        """The place in the data; examples read ahead, encoded, make up most of its size."""
        place = {
            "shard": self._shard,
            "num_streams": self._num_streams,
            "updates": self._updates,
            "turn": self._pending[0].turn if self._pending else self._turn,
            "tallies": {n: s.tally.to_dict() for n, s in self._streams.items()},
        }
        pulled = [rows for batch in self._pending for rows in batch.pulled]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(_PLACE, json.dumps(place))
            for number, stream in self._streams.items():
                mine = (rows for n, rows in pulled if n == number)
                stream.save(archive, list(itertools.chain.from_iterable(mine)))
        return buffer.getvalue()

    def set_state(self, *states: bytes) -> None:
        """Goes on where `get_state` was called; the next batches are the same to the bit.

        On as many shards as before, each is given its own state. On another number, each is given
        the states of all former shards, saved after the same update, and takes its streams from
        them: no example is repeated or lost. If moreover all batches together have a multiple of
        `num_streams` rows, and of the numbers of shards and streams one divides the other, then
        the shards together also deliver the same rows at each update as before.

        Raises:
          CheckpointError: a state is damaged, of other data, or that of a stream is missing.
        """
        with contextlib.ExitStack() as stack:
            archives = [_open(stack, state) for state in states]
            places = [json.loads(archive.read(_PLACE)) for archive in archives]
            own = self._check_places(places)
            for number, stream in self._streams.items():
                having = [i for i, place in enumerate(places) if str(number) in place["tallies"]]
                chosen = own if own is not None else having[0]
                stream.restore(archives[chosen])
                if own is not None:
                    stream.tally = Tally.from_dict(places[own]["tallies"][str(number)])
                else:
                    tallies = [Tally.from_dict(places[i]["tallies"][str(number)]) for i in having]
                    stream.tally = _carried_over(tallies, first=self._share.offset == 0)
        self._pending.clear()
        self._turn = places[own]["turn"] if own is not None else 0
        self._updates = places[0]["updates"]
        if own is None:
            shard_id, num_shards = self._shard
            _log.info(
                "data shard %d of %d goes on with streams %s of %d former shards: 0 examples "
                "repeated, 0 lost",
                shard_id,
                num_shards,
                list(self._streams),
                places[0]["shard"][1],
            )

    def _check_places(self, places: Sequence[Mapping[str, Any]]) -> int | None:
        """Which of the places is this shard's own; None if it is another number of shards'."""
        if streams := {place["num_streams"] for place in places} - {self._num_streams}:
            raise CheckpointError(
                f"The saved place in the data is one of {max(streams)} streams, not of "
                f"{self._num_streams}: resume with as many."
            )
        if len({(place["shard"][1], place["updates"]) for place in places}) != 1:
            raise CheckpointError("The saved places in the data are not of one moment.")
        known = {int(number) for place in places for number in place["tallies"]}
        if missing := sorted(self._streams.keys() - known):
            raise CheckpointError(
                f"The saved places in the data do not know of streams {missing}: on another "
                "number of data shards each needs the places of all former ones."
            )
        shards = [tuple(place["shard"]) for place in places]
        return shards.index(self._shard) if self._shard in shards else None

    def close(self) -> None:
        """Ends the threads that read and decode ahead; the batches end here."""
        self._decoders.shutdown(cancel_futures=True)
        self._pending.clear()
        self._streams = {}


_running: weakref.WeakSet[PackedBatches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # Threads that are in a Python preprocessor when the interpreter ends crash or hang it.
    for batches in list(_running):
        batches.close()


def _open(stack: contextlib.ExitStack, state: bytes) -> zipfile.ZipFile:
    try:
        archive = stack.enter_context(zipfile.ZipFile(io.BytesIO(state)))
        if archive.testzip() is None and _PLACE in archive.namelist():
            return archive
    except zipfile.BadZipFile:
        pass
    raise CheckpointError("The saved place in the data is damaged.")


def _carried_over(tallies: Sequence[Tally], *, first: bool) -> Tally:
    """Of shards that shared a stream, for the first of those that do now; nothing for others."""
    total = Tally()
    for tally in tallies:
        total.take_over(tally)
    return total if first else Tally(skipped=total.skipped)


def packed_batches(
    mixture: str,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    *,
    image_size: int,
    pad_id: int = 1,
    pack: bool = True,
    open_rows: int = 4,
    image_mode: str = CROP,
    split: str = "train",
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_streams: int = 8,
    shard_id: int = 0,
    num_shards: int = 1,
    threads: int = 1,
) -> PackedBatches:
    """Batches of a registered mixture or task, by default endless, shuffled and packed.

    Args:
      mixture: name of a seqio mixture or task.
      lengths: see `kosmos2_jax.data.features.feature_lengths`; tokens and pictures of a row.
      batch_size: rows of one shard's batch.
      seed: of order and mixing; the same seed gives the same batches.
      image_size: pixels a side.
      pad_id: id at places that hold nothing.
      pack: whether examples share rows, see `PackingFeatureConverter`.
      open_rows: see `kosmos2_jax.data.packing.RowLimits`.
      image_mode: see `kosmos2_jax.data.pictures.decode_picture`; that of training (spec 4.3).
      split: which split to read.
      shuffle: whether files and examples are shuffled.
      num_epochs: times that each task is read, None for ever.
      num_streams: parts that the data are dealt to, once and for all: a run goes on with as many
        as it began with, on any number of shards. Best a multiple of the numbers of shards that
        may come, and files of each task a multiple of it. Each stream has shuffle buffers and
        open rows of its own, which also travel with checkpoints.
      shard_id: which share of the data, from 0.
      num_shards: how many shares there are, along the data axis of the mesh.
      threads: that decode pictures.

    Returns:
      Batches of the features of `PackingFeatureConverter`, each with a leading batch axis.

    Raises:
      ConfigError: there is no such shard, or a length makes no sense.
      DataError: no task has the split.
    """
    converter = PackingFeatureConverter(
        image_size, pad_id, pack=pack, decode=False, open_rows=open_rows
    )
    options = tf.data.Options()
    options.deterministic = True
    # The training step needs the cores more than reading does, and there are several streams.
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    provider = seqio.get_mixture_or_task(mixture)
    share = Share.of(shard_id, num_shards, num_streams)
    datasets = {
        stream: stream_dataset(
            provider,
            lengths,
            converter,
            stream,
            num_streams,
            split=split,
            seed=seed,
            shuffle=shuffle,
            num_epochs=num_epochs,
        )
        .prefetch(-(-batch_size * share.every // len(share.streams)))
        .with_options(options)
        for stream in share.streams
    }
    return PackedBatches(
        mixture,
        datasets,
        converter.row_limits(lengths),
        batch_size,
        image_size,
        num_streams=num_streams,
        shard_id=shard_id,
        num_shards=num_shards,
        image_mode=image_mode,
        threads=threads,
    )
