"""Files that sources come in: lines, tars, folders of samples, parquet.

Paths may be local or of any file system that etils.epath reads (`gs://...`). Whatever bytes a
file holds, iterating over it raises nothing: where it cannot go on it yields an `Unusable` and
ends. Only a file that cannot be opened is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from etils import epath

from kosmos2_jax.data.skips import DataError, Unusable

# More than the largest record of any known source; what is larger is no record of one.
MAX_LINE = 64 << 20
MAX_MEMBER = 256 << 20

_JSON_SPACE = re.compile(r"[ \t\n\r]*")

PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif")

# What readers raise by format when data are cut short or broken. Arrow's errors are among them.
_READING_ERRORS = (
    OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError,
    MemoryError, NotImplementedError, zlib.error, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Member:
    """A file, or a part of one.

    Attributes:
      name: within its tar or folder.
      path: of the file that holds it.
      offset: of its first byte there.
      size: in bytes.
    """

    name: str
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns its bytes; raises `Unusable` if they are not all there or are far too many."""
        if self.size > MAX_MEMBER:
            raise Unusable("file too large")
        try:
            with epath.Path(self.path).open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read(self.size)
        except OSError:
            raise Unusable("file cannot be read") from None
        if len(content) < self.size:
            raise Unusable("file cut short or broken")
        return content


# The files of one example by their ending, as webdataset groups them: {"jpg": ..., "json": ...}.
Sample = dict[str, Member]


def expand_glob(pattern: str, what: str) -> list[str]:
    """Returns the paths that a path or glob means, sorted.

    Raises:
      DataError: there are none.
    """
    if epath.Path(pattern).exists():
        return [pattern]
    parts = pattern.split("/")
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), None)
    found: list[str] = []
    if wild is not None:
        root = epath.Path("/".join(parts[:wild]) or ("/" if pattern.startswith("/") else "."))
        found = sorted(str(path) for path in root.glob("/".join(parts[wild:])))
    if not found:
        raise DataError(f"{what}: nothing is found at {pattern!r}; check how it is spelt.")
    return found


def open_file(path: str) -> BinaryIO:
    """Opens a file of the source.

    Raises:
      DataError: it is not there or may not be read.
    """
    try:
        return epath.Path(path).open("rb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path!r} cannot be read: {reason}.") from None


def lines(path: str, *, blank: bool = False) -> Iterator[tuple[str, bytes | Unusable]]:
    """Yields number, counted from 0, and bytes of each line of a file, without its end.

    Files that end in .gz or .zst are decompressed, of a .zip its first member is read.

    Args:
      path: of the file.
      blank: whether blank lines are yielded too.
    """
    number = 0
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_file(path))
        while True:
            try:
                if not number:
                    stream = _decompressed(stack, stream, path)
                line = stream.readline(MAX_LINE + 1)
                whole = len(line) <= MAX_LINE
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE + 1)
            except _READING_ERRORS:
                yield str(number), Unusable("file cut short or broken")
                return
            if not line and whole:
                return
            if not whole:
                yield str(number), Unusable("line too long")
            elif blank or not line.isspace():
                yield str(number), line.rstrip(b"\r\n")
            number += 1


def _decompressed(stack: contextlib.ExitStack, stream: BinaryIO, path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return stack.enter_context(gzip.GzipFile(fileobj=stream))
    if path.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(stack.enter_context(pyarrow.CompressedInputStream(stream, "zstd")))
    if path.endswith(".zip"):
        archive = stack.enter_context(zipfile.ZipFile(stream))
        return stack.enter_context(archive.open(archive.namelist()[0]))
    return stream


def json_list(path: str) -> Iterator[tuple[str, Any | Unusable]]:
    """Yields number, counted from 0, and value of each element of a JSON list in UTF-8.

    Raises:
      DataError: the file holds no list.
    """
    with open_file(path) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{path!r} is not JSON in UTF-8: get it again.") from None
    place = _JSON_SPACE.match(text).end()
    if text[place : place + 1] != "[":
        raise DataError(f"{path!r} is not a JSON list.")
    decoder, number, before = json.JSONDecoder(), 0, "["
    while text[place : place + 1] == before:
        place = _JSON_SPACE.match(text, place + 1).end()
        if text[place : place + 1] == "]" and not number:
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        yield str(number), value
        place = _JSON_SPACE.match(text, place).end()
        number, before = number + 1, ","
    if text[place : place + 1] != "]":
        yield str(number), Unusable("file cut short or broken")


def tar_samples(path: str) -> Iterator[tuple[str, Sample | Unusable]]:
    """Yields key and files of each sample of a tar file as webdataset lays it out.

    Files that follow one another and share their name up to the first dot make a sample.
    """
    yield from _grouped(_tar_members(path))


def tar_index(path: str) -> Iterator[tuple[str, Sample]]:
    """Yields the samples of a tar file that are there.

    Raises:
      DataError: this is not a tar file.
    """
    for number, (key, sample) in enumerate(tar_samples(path)):
        if isinstance(sample, Unusable):
            if not number:
                raise DataError(f"{path!r} is not a tar file: mend --images.")
            return
        yield key, sample


def folder_samples(path: str) -> Iterator[tuple[str, Sample | Unusable]]:
    """Yields the samples of a folder, as `tar_samples` does those of a tar file."""
    entries = sorted(entry for entry in epath.Path(path).iterdir() if not entry.is_dir())
    members = (Member(entry.name, str(entry), 0, entry.stat().length) for entry in entries)
    yield from _grouped(members)


def _grouped(members: Iterator[Member | Unusable]) -> Iterator[tuple[str, Sample | Unusable]]:
    key, sample = "", Sample()
    for member in members:
        if isinstance(member, Unusable):
            if sample:
                yield key, sample
            yield f"after {key}", member
            return
        folder, name = posixpath.split(member.name)
        stem, _, ending = name.partition(".")
        new = posixpath.join(folder, stem)
        if sample and new != key:
            yield key, sample
            sample = Sample()
        key = new
        sample[ending.lower()] = member
    if sample:
        yield key, sample


def _tar_members(path: str) -> Iterator[Member | Unusable]:
    with open_file(path) as stream:
        try:
            tar = tarfile.open(fileobj=stream, mode="r:")
        except _READING_ERRORS:
            yield Unusable("not a tar file")
            return
        end = stream.seek(0, io.SEEK_END)
        while True:
            try:
                info = tar.next()
                tar.members = []  # or all of them stay in memory
            except _READING_ERRORS:
                yield Unusable("tar file cut short or broken")
                return
            if info is None:
                break
            if info.isreg():
                if info.offset_data + info.size > end:
                    yield Unusable("tar file cut short or broken")
                    return
                yield Member(info.name, path, info.offset_data, info.size)
        # A broken header looks to tarfile like the end, which is a block of zeros.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield Unusable("tar file cut short or broken")


def picture_of(sample: Sample) -> Member | None:
    """Returns the picture of a sample, if it has one."""
    return next((sample[ending] for ending in PICTURE_ENDINGS if ending in sample), None)


def url_of(raw: bytes) -> str | None:
    """Returns what the JSON beside a picture says it came from, if it says so."""
    try:
        url = json.loads(raw)["url"]
    except (*_READING_ERRORS, UnicodeError):
        return None
    return url if isinstance(url, str) else None


def parquet_rows(
    path: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any] | Unusable]]:
    """Yields number, counted from 0, and values of each row of a parquet file.

    Args:
      path: of the file.
      columns: that must be there.
      optional: that are read if they are there.

    Raises:
      DataError: a column is missing.
    """
    from pyarrow import parquet

    row = 0
    with open_file(path) as stream:
        try:
            file = parquet.ParquetFile(stream)
            names = file.schema_arrow.names
        except _READING_ERRORS:
            yield str(row), Unusable("not a parquet file")
            return
        missing = [name for name in columns if name not in names]
        if missing:
            raise DataError(
                f"{path!r} has no column {missing[0]!r}, only {', '.join(names) or 'none'}: give "
                "the files that hold it, or name the column that does."
            )
        wanted = [*columns, *(name for name in optional if name in names)]
        batches = file.iter_batches(batch_size=64, columns=wanted, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except _READING_ERRORS:
                yield str(row), Unusable("parquet file cut short or broken")
                return
            if batch is None:
                return
            for i in range(batch.num_rows):
                yield str(row), _row(batch, i)
                row += 1


def _row(batch: Any, i: int) -> dict[str, Any] | Unusable:
    try:
        return {name: batch.column(name)[i].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return Unusable("not UTF-8")
    except _READING_ERRORS:
        return Unusable("broken value")
