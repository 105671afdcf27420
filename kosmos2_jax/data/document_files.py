"""Names of the files of documents, and documents that a program makes, such as drawn scenes.

Making a document must not need TensorFlow, so that helper processes start fast.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from kosmos2_jax.data.documents import Document, to_tf_example
from kosmos2_jax.data.tf_records import framed

# Of what the files hold; those of another version are written anew.
_VERSION = 1
_CHUNK = 250  # documents a helper process makes at a time


def shard_files(folder: Path, split: str, num_shards: int) -> list[Path]:
    """Names of a split's files."""
    names = (f"{split}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards))
    return [folder / name for name in names]


def shard_pattern(folder: Path, split: str) -> str:
    """The file pattern of a split, for seqio."""
    return str(folder / f"{split}-*-of-*.tfrecord")


def write_documents(
    folder: Path,
    split: str,
    count: int,
    make: Callable[[int], Document],
    settings: dict[str, Any],
    *,
    num_shards: int = 16,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Writes documents 0 to count - 1 of a split, unless the very same are there already.

    Args:
      folder: created where missing. A manifest `SPLIT.json`, written last, marks a split that is
        complete; without it, or with other settings, the split is written anew.
      split: name of the split.
      count: number of documents.
      make: makes document i, and depends on i alone. It is sent to helper processes.
      settings: what JSON can hold and `make` depends on; kept in the manifest.
      num_shards: files; at least as many as hosts will read them.
      processes: how many processes make documents; the files do not depend on it.
      progress: told how many documents are written, now and then.

    Returns:
      Whether anything had to be written.
    """
    manifest = folder / f"{split}.json"
    asked = {"version": _VERSION, "count": count, "num_shards": num_shards, "settings": settings}
    content = json.dumps(asked, indent=1)
    if manifest.exists() and manifest.read_text() == content:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    for stale in folder.glob(f"{split}-*-of-*.tfrecord"):
        stale.unlink()
    _write_shards(shard_files(folder, split, num_shards), _chunks(make, count, processes), progress)
    manifest.write_text(content)
    return True


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns uint8 [H, W, 3] as a PNG, from which the same pixels come back."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # fast, and small pictures
    return buffer.getvalue()


def _chunks(
    make: Callable[[int], Document], count: int, processes: int
) -> Iterator[list[Document]]:
    """Documents in order, a chunk at a time, made by so many processes."""
    if processes == 1:
        yield from (_make_chunk(make, count, start) for start in range(0, count, _CHUNK))
        return
    with contextlib.ExitStack() as stack:
        helpers = [_start_helper(stack, (make, count, k, processes)) for k in range(processes)]
        for number in range(-(-count // _CHUNK)):
            try:
                yield pickle.load(helpers[number % processes])
            except EOFError:
                raise RuntimeError("a helper process that makes documents failed") from None


def _start_helper(stack: contextlib.ExitStack, order: tuple[Any, ...]) -> BinaryIO:
    """Starts a process that makes every so-manieth chunk, and gives what it writes them to.

    multiprocessing would fork threads that cannot be forked, or import the main program again
    with all that it imports.
    """
    program = "from kosmos2_jax.data import document_files; document_files.help_out()"
    command = [sys.executable, "-c", program]
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


def _make_chunk(make: Callable[[int], Document], count: int, start: int) -> list[Document]:
    return [make(index) for index in range(start, min(start + _CHUNK, count))]


def _write_shards(
    files: list[Path],
    chunks: Iterator[list[Document]],
    progress: Callable[[int], None] | None,
) -> None:
    """Deals documents to the shards in turn, as cards."""
    written = 0
    with contextlib.ExitStack() as stack:
        shards = [stack.enter_context(open(file, "wb")) for file in files]
        for chunk in chunks:
            for document in chunk:
                shards[written % len(files)].write(framed(to_tf_example(document)))
                written += 1
            if progress is not None:
                progress(written)
