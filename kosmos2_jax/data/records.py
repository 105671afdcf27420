"""Pictures with annotations in TFRecord shards.

Pixels are stored deflated: of small drawn pictures that reads faster than PNG and takes no more
room. Making a record must not need TensorFlow, so that helper processes start fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_CHUNK = 250  # records a helper process makes at a time


@dataclasses.dataclass(frozen=True)
class Record:
    """A picture, uint8 [S, S, 3], and what JSON can hold about it."""

    pixels: np.ndarray
    annotation: dict[str, Any]


def shard_files(folder: Path, split: str, num_shards: int) -> list[Path]:
    """Names of a split's files."""
    names = (f"{split}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards))
    return [folder / name for name in names]


def shard_pattern(folder: Path, split: str) -> str:
    """The file pattern of a split, for seqio."""
    return str(folder / f"{split}-*-of-*.tfrecord")


def write_records(
    folder: Path,
    split: str,
    count: int,
    make: Callable[[int], Record],
    settings: dict[str, Any],
    *,
    num_shards: int = 16,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Writes records 0 to count - 1 of a split, unless the very same are there already.

    Args:
      folder: created where missing. A manifest `SPLIT.json`, written last, marks a split that is
        complete; without it, or with other settings, the split is written anew.
      split: name of the split.
      count: number of records.
      make: makes record i, and depends on i alone. It is sent to helper processes.
      settings: what JSON can hold and `make` depends on; kept in the manifest.
      num_shards: files; at least as many as hosts will read them.
      processes: how many processes make records; the files do not depend on it.
      progress: told how many records are written, now and then.

    Returns:
      Whether anything had to be written.
    """
    manifest = folder / f"{split}.json"
    content = json.dumps({"count": count, "num_shards": num_shards, **settings}, indent=1)
    if manifest.exists() and manifest.read_text() == content:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    for stale in folder.glob(f"{split}-*-of-*.tfrecord"):
        stale.unlink()
    _write_shards(shard_files(folder, split, num_shards), _chunks(make, count, processes), progress)
    manifest.write_text(content)
    return True


def _chunks(
    make: Callable[[int], Record], count: int, processes: int
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Encoded records in order, a chunk at a time, made by so many processes."""
    if processes == 1:
        yield from (_make_chunk(make, count, start) for start in range(0, count, _CHUNK))
        return
    with contextlib.ExitStack() as stack:
        helpers = [_start_helper(stack, (make, count, k, processes)) for k in range(processes)]
        for number in range(-(-count // _CHUNK)):
            try:
                yield pickle.load(helpers[number % processes])
            except EOFError:
                raise RuntimeError("a helper process that makes records failed") from None


def _start_helper(stack: contextlib.ExitStack, order: tuple[Any, ...]) -> BinaryIO:
    """Starts a process that makes every so-manieth chunk, and gives what it writes them to.

    multiprocessing would fork threads that cannot be forked, or import the main program again
    with all that it imports.
    """
    command = [sys.executable, "-c", "from kosmos2_jax.data import records; records.help_out()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdin is not None and process.stdout is not None
    pickle.dump(order, process.stdin)
    process.stdin.close()
    return process.stdout


def help_out() -> None:
    """What a helper process does."""
    make, count, first, step = pickle.load(sys.stdin.buffer)
    for start in range(first * _CHUNK, count, step * _CHUNK):
        pickle.dump(_make_chunk(make, count, start), sys.stdout.buffer)
        sys.stdout.flush()


def _make_chunk(make: Callable[[int], Record], count: int, start: int) -> list[tuple[bytes, bytes]]:
    records = map(make, range(start, min(start + _CHUNK, count)))
    return [
        (zlib.compress(r.pixels.tobytes(), level=1), json.dumps(r.annotation).encode())
        for r in records
    ]


def _write_shards(
    files: list[Path],
    chunks: Iterator[list[tuple[bytes, bytes]]],
    progress: Callable[[int], None] | None,
) -> None:
    """Deals records to the shards in turn, as cards."""
    import tensorflow as tf

    writers = [tf.io.TFRecordWriter(str(file)) for file in files]
    written = 0
    for chunk in chunks:
        for pixels, annotation in chunk:
            features = {
                "pixels": tf.train.Feature(bytes_list=tf.train.BytesList(value=[pixels])),
                "annotation": tf.train.Feature(bytes_list=tf.train.BytesList(value=[annotation])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writers[written % len(files)].write(example.SerializeToString())
            written += 1
        if progress is not None:
            progress(written)
    for writer in writers:
        writer.close()
