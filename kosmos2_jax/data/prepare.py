"""From the files of a source to sharded TFRecords of documents, one output shard at a time.

A preparation is planned once, its shards are converted in any order by any processes, on one
machine or many, and it is finished when all are there. What is where in the output folder:

  train-00003-of-00016.tfrecord             records of `kosmos2_jax.data.documents`
  train.json                                counts; written last, when everything is there
  progress/train.settings.json              what was asked for
  progress/train-00003-of-00016.json        counts of a shard that is finished
  progress/train-00003-of-00016.partial     counts so far of one that is not
  progress/train-00003-of-00016.error       why one could not be converted
  progress/train.stop                       tells all processes to stop

Nothing here needs Beam; `tools/prepare_data.py` runs it there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from etils import epath

from kosmos2_jax.data import document_files, documents
from kosmos2_jax.data.documents import Document
from kosmos2_jax.data.readers import FORMATS
from kosmos2_jax.data.readers.base import Reading, Share
from kosmos2_jax.data.readers.pictures import PictureRules
from kosmos2_jax.data.skips import MIN_EXAMPLES_TO_STOP, DataError, Skips
from kosmos2_jax.data.tf_records import framed
from kosmos2_jax.interop.files import as_path, in_bucket

# Of readers and records; shards of another version are not mixed with new ones.
VERSION = 1

# A run is stopped early only where more than so many times the limit are bad.
_EARLY = 2

_SECONDS_BETWEEN_REPORTS = 5.0


class Stage(Protocol):
    """What becomes of documents between their reader and the records."""

    def settings(self) -> dict[str, Any]:
        """What JSON can hold and its results depend on."""

    def run(
        self, documents: Iterator[Document], source: str, skips: Skips, shard: epath.Path
    ) -> Iterator[Document]:
        """Yields documents of `source`, counted in `skips`, made of those that were read.

        What it keeps beside the records lies beside `shard` and is written, or written anew, when
        all documents are through.
        """


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be prepared.

    Attributes:
      format: a name in `kosmos2_jax.data.readers.FORMATS`.
      options: settings of the format.
      pictures: what pictures must be and how they are stored.
      source: name of the source, for counts and losses by source.
      split: name of the split.
      out: folder of the output.
      paths: files of the source.
      shares: output shards for each of the files.
      stage: what documents go through before they are stored, if anything.
    """

    format: str
    options: Any
    pictures: PictureRules
    source: str
    split: str
    out: str
    paths: tuple[str, ...]
    shares: int
    stage: Stage | None = None

    @property
    def read_as(self) -> str:
        """The name that what is read is counted under: another one than what a stage makes."""
        return self.source if self.stage is None else f"{self.source} (read)"

    @property
    def num_shards(self) -> int:
        """How many output shards there are."""
        return len(self.paths) * self.shares

    @functools.cached_property
    def shards(self) -> list[epath.Path]:
        """The files of the output shards."""
        return document_files.shard_files(epath.Path(self.out), self.split, self.num_shards)

    def mark(self, ending: str, index: int | None = None) -> epath.Path:
        """A file beside the shards that says how far they, or one of them, are."""
        name = self.split if index is None else self.shards[index].stem
        return epath.Path(self.out) / "progress" / f"{name}.{ending}"

    def settings(self) -> dict[str, Any]:
        """What JSON can hold and the output depends on."""
        return {
            "version": VERSION,
            "format": self.format,
            "source": self.source,
            "split": self.split,
            "options": dataclasses.asdict(self.options),
            "pictures": dataclasses.asdict(self.pictures),
            "inputs": [[path, _num_bytes(path)] for path in self.paths],
            "shards": self.num_shards,
            **({} if self.stage is None else {"stage": self.stage.settings()}),
        }


def _num_bytes(path: str) -> int | None:
    file = epath.Path(path)
    return file.stat().length if file.exists() and not file.is_dir() else None


def make_plan(
    format: str,
    inputs: Sequence[str],
    out: str,
    *,
    options: Any = None,
    pictures: PictureRules | None = None,
    source: str | None = None,
    split: str = "train",
    num_shards: int = 16,
    stage: Stage | None = None,
) -> Plan:
    """Looks up the files of a source.

    Args:
      format: a name in `kosmos2_jax.data.readers.FORMATS`.
      inputs: files, globs or folders; names for the format "tfds".
      out: folder of the output, on a disk or, as gs://BUCKET/FOLDER, in a bucket.
      options: settings of the format; its defaults if None.
      pictures: what pictures must be and how they are stored; as they are if None.
      source: its name; that of the output folder by default.
      split: name of the split.
      num_shards: how many output shards there are at least. Each belongs to one input file: of
        fewer files each is read several times, and every time another share of it converted.
      stage: what documents go through before they are stored, if anything.

    Raises:
      DataError: an input is not there or empty.
      ConfigError: `out` is in a bucket, and what buckets need is not installed.
    """
    if in_bucket(out):
        out = str(as_path(out))
    options = FORMATS[format].options() if options is None else options
    paths = FORMATS[format].find(inputs, options)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(f"INPUT: {twice!r} is named twice, which would double its examples.")
    for path in paths:
        if _num_bytes(path) == 0:
            raise DataError(f"INPUT: {path!r} is empty: get it again, or leave it out.")
    return Plan(
        format,
        options,
        PictureRules() if pictures is None else pictures,
        epath.Path(out).name if source is None else source,
        split,
        out,
        tuple(paths),
        -(-num_shards // len(paths)),
        stage,
    )


def start(plan: Plan) -> list[int]:
    """Prepares the output folder for a run.

    Returns:
      Which shards are still to be converted.

    Raises:
      DataError: the folder holds shards that were made with other settings.
    """
    progress = epath.Path(plan.out) / "progress"
    progress.mkdir(parents=True, exist_ok=True)
    settings, mark = plan.settings(), plan.mark("settings.json")
    if mark.exists():
        old = json.loads(mark.read_text())
        changed = [name for name in settings if old.get(name) != settings[name]]
        if changed:
            raise DataError(
                f"{plan.out!r} holds shards of split {plan.split!r} that were made with other "
                f"{', '.join(changed)}: name another --out, or delete the folder."
            )
    else:
        _write_json(mark, settings)
    plan.mark("stop").unlink(missing_ok=True)
    name = f"{plan.split}-[0-9]*"
    for pattern in (f"{name}.partial", f"{name}.error", f"{name}.*.writing-*"):
        for stale in progress.glob(pattern):
            stale.unlink()
    for stale in epath.Path(plan.out).glob(f"{name}.tfrecord.writing-*"):
        stale.unlink()
    return [index for index in range(plan.num_shards) if not plan.mark("json", index).exists()]


def convert(plan: Plan, index: int) -> None:
    """Converts one output shard, unless that is done.

    It appears under its name when it is complete, and then its counts. May run twice at a time,
    as distributed runners do it: both make the same bytes.

    Args:
      plan: what is prepared.
      index: of the output shard. An error that the user can mend is left for `finish`.
    """
    if plan.mark("json", index).exists() or plan.mark("stop").exists():
        return
    shard = plan.shards[index]
    temporary = shard.with_name(f"{shard.name}.writing-{uuid.uuid4().hex}")
    try:
        counts = _write_shard(plan, index, temporary)
    except DataError as error:
        _write_json(plan.mark("error", index), str(error))
        counts = None
    if counts is None:
        temporary.unlink(missing_ok=True)
        return
    temporary.replace(shard)
    _write_json(plan.mark("json", index), counts)
    plan.mark("partial", index).unlink(missing_ok=True)


def _write_shard(plan: Plan, index: int, file: epath.Path) -> dict[str, Any] | None:
    """Writes the records of a shard; gives its counts, or None if it was told to stop."""
    path, share = divmod(index, plan.shares)
    reading = Reading(
        plan.read_as,
        _names_within(plan.paths)[path],
        Skips(),
        plan.pictures,
        Share(share, plan.shares),
    )
    found = FORMATS[plan.format].read(plan.paths[path], reading, plan.options)
    if plan.stage is not None:
        found = plan.stage.run(found, plan.source, reading.skips, plan.shards[index])
    num_bytes, reported = 0, time.monotonic()
    with file.open("wb") as shard:
        for document in found:
            record = documents.to_tf_example(document)
            shard.write(framed(record))
            num_bytes += len(record)
            if time.monotonic() > reported + _SECONDS_BETWEEN_REPORTS:
                if plan.mark("stop").exists():
                    return None
                _write_json(plan.mark("partial", index), _counts(reading.skips, num_bytes))
                reported = time.monotonic()
    return _counts(reading.skips, num_bytes)


def _counts(skips: Skips, num_bytes: int) -> dict[str, Any]:
    return {"bytes": num_bytes, "counts": skips.to_dict()}


def _names_within(paths: Sequence[str]) -> list[str]:
    """What tells the paths apart: the parts behind those that all begin with."""
    parts = [path.split("/") for path in paths]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
      skips: counts of all that was read so far.
      num_shards: finished ones.
      num_bytes: of all records so far.
      errors: why shards could not be converted.
    """

    skips: Skips
    num_shards: int
    num_bytes: int
    errors: tuple[str, ...]


class Watch:
    """Follows a preparation from its marks; marks of finished shards are read once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._finished: dict[str, dict[str, Any]] = {}

    def look(self) -> Progress:
        """Says how far the preparation is."""
        partial, errors = [], []
        for mark in (epath.Path(self._plan.out) / "progress").glob(f"{self._plan.split}-[0-9]*"):
            if mark.name in self._finished:
                continue
            try:
                content = json.loads(mark.read_text())
            except (FileNotFoundError, ValueError):
                continue  # it went away, or is another process's that is still being written
            if mark.suffix == ".json":
                self._finished[mark.name] = content
            elif mark.suffix == ".error":
                errors.append(content)
            elif mark.suffix == ".partial":
                partial.append(content)
        skips = Skips()
        skips.kept(self._plan.read_as, 0)
        all_counts = [*self._finished.values(), *partial]
        for counts in all_counts:
            skips.merge(Skips.from_dict(counts["counts"]))
        num_bytes = sum(counts["bytes"] for counts in all_counts)
        return Progress(skips, len(self._finished), num_bytes, tuple(errors))

    def stop_if_bad(self, max_skipped: float) -> Progress:
        """As `look`, and tells all processes to stop where the run cannot end well."""
        progress = self.look()
        skips, source = progress.skips, self._plan.read_as
        kept, skipped = skips.num_kept(source), skips.num_skipped(source)
        too_many = skipped > _EARLY * max_skipped * (kept + skipped)
        if progress.errors or (too_many and kept + skipped >= MIN_EXAMPLES_TO_STOP):
            self._plan.mark("stop").touch()
        return progress


def finish(plan: Plan, max_skipped: float = 0.05) -> Progress:
    """Checks what was prepared and writes its counts; shards that are finished stay in any case.

    Args:
      plan: what was prepared.
      max_skipped: the largest share of skipped examples that is borne.

    Raises:
      DataError: a shard could not be converted, nothing was kept, or too much skipped.
    """
    progress = Watch(plan).look()
    if progress.errors:
        raise DataError(progress.errors[0])
    progress.skips.check(max_skipped)
    if progress.num_shards < plan.num_shards:
        raise DataError(
            f"Only {progress.num_shards} of {plan.num_shards} shards are finished: run the same "
            "command again."
        )
    counts = _counts(progress.skips, progress.num_bytes)
    _write_json(epath.Path(plan.out) / f"{plan.split}.json", {**plan.settings(), **counts})
    return progress


def convert_all(plan: Plan, max_skipped: float = 0.05) -> Progress:
    """Prepares everything in this process, one shard after the other.

    Raises:
      DataError: see `start` and `finish`.
    """
    watch = Watch(plan)
    for index in start(plan):
        convert(plan, index)
        watch.stop_if_bad(max_skipped)
    return finish(plan, max_skipped)


def _write_json(path: epath.Path, content: Any) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.writing-{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)
