"""Reading and writing folders so that nothing is half written or overwritten by mistake.

On a disk a folder or file is written beside its place and renamed. A bucket (`gs://`) cannot rename
folders, and writes a file at once or not at all: there the description, without which a folder is
no checkpoint, is written last.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from kosmos2_jax.errors import CheckpointError, ConfigError, TrainingError

KOSMOS2_JSON = "kosmos2.json"
CONFIG_JSON = "config.json"
ADAPTER_CONFIG_JSON = "adapter_config.json"
TOKENIZER_MODEL = "sentencepiece.bpe.model"
DICT_TXT = "dict.txt"
# Each makes a folder a checkpoint.
DESCRIPTIONS = frozenset({KOSMOS2_JSON, CONFIG_JSON, ADAPTER_CONFIG_JSON})


_BUCKET = "gs://"
# Buckets by gcsfs, whether TensorFlow is installed or not: one way, which is tested. epath looks at
# this when it first meets a path, and never again.
os.environ.setdefault("EPATH_USE_TF", "false")
# And one way of gcsfs: with this it would ask by gRPC, whose rights are others, what kind of bucket
# each file is in. gcsfs looks at it when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def as_path(path: epath.PathLike) -> epath.Path:
    """A place on a disk, by its absolute path, or in a bucket, `gs://BUCKET/FOLDER`.

    Raises:
      ConfigError: an address of another kind, or what buckets need is not installed.
    """
    text = os.fspath(path)
    if text.startswith(_BUCKET):
        _prepare_buckets()
        return epath.Path(text)
    if "://" in text:
        raise ConfigError(f"{text} is neither a folder nor {_BUCKET}BUCKET/FOLDER")
    return epath.Path(os.path.abspath(text))


def in_bucket(path: epath.PathLike) -> bool:
    """Whether it begins with `gs://`."""
    return os.fspath(path).startswith(_BUCKET)


@functools.cache
def _prepare_buckets() -> None:
    try:
        import fsspec
        import gcsfs  # noqa: F401
        from google.cloud import storage  # noqa: F401  # Orbax asks by it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_BUCKET} paths need {error.name!r}, which is missing: pip install "
            "'kosmos2-jax[gcs]', or give a folder on a disk"
        ) from None
    # TensorStore and other hosts write to the bucket, too, of which gcsfs does not know.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


@contextlib.contextmanager
def told_of_bucket(place: epath.Path) -> Iterator[None]:
    """For writing to a bucket: whatever its clients raise becomes one error that says the mend.

    Raises:
      TrainingError: `place` could not be written.
    """
    try:
        yield
    except Exception as error:  # gcsfs's, aiohttp's, Google's
        reason = (str(error).strip().splitlines() or [""])[-1]
        raise TrainingError(
            f"{place} cannot be written ({type(error).__name__}: {reason}); see that there is such "
            "a bucket and that your Google credentials may read, write and delete in it, and run "
            "the same command again"
        ) from error


def files_in(folder: epath.Path) -> Iterator[epath.Path]:
    """All files in a folder and in those within it, by name."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files_in(path)
        else:
            yield path


def move_folder(source: epath.Path, destination: epath.Path) -> None:
    """Moves a folder to a place that is free; file by file in a bucket."""
    if not in_bucket(source):
        source.rename(destination)
        return
    for file in files_in(source):
        file.copy(destination / file.relative_to(source))
    source.rmtree()


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      CheckpointError: the file is missing, cut short or no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is cut short or no JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def write_json(path: epath.Path, values: Mapping[str, Any]) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(destination: epath.PathLike, overwrite: bool = False) -> Iterator[epath.Path]:
    """A folder to write into that becomes `destination` once everything is written.

    The body writes into a hidden sibling; leaving it without an error renames the sibling, an
    error removes it, so that `destination` is either complete or untouched. In a bucket the body
    writes to `destination`, its description last; an error removes all of it.

    Args:
      destination: the folder to create; it may exist if it is empty.
      overwrite: replace a checkpoint that is there. Any other folder is never replaced.

    Raises:
      CheckpointError: `destination` may not be written.
    """
    destination = as_path(destination)  # "." has no name to put a sibling beside
    check_destination(destination, overwrite)
    if in_bucket(destination):
        with _new_in_bucket(destination):
            yield destination
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    old = destination.with_name(f".{destination.name}.old-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if destination.exists():
            destination.rename(old)
        partial.rename(destination)
    finally:
        partial.rmtree(missing_ok=True)
        old.rmtree(missing_ok=True)


@contextlib.contextmanager
def _new_in_bucket(destination: epath.Path) -> Iterator[None]:
    for name in DESCRIPTIONS:
        (destination / name).unlink(missing_ok=True)
    destination.rmtree(missing_ok=True)
    try:
        yield
    except BaseException:
        destination.rmtree(missing_ok=True)
        raise


@contextlib.contextmanager
def new_file(destination: epath.PathLike, overwrite: bool = False) -> Iterator[epath.Path]:
    """As `new_folder`, for one file."""
    destination = as_path(destination)
    if destination.exists() and not (overwrite and destination.is_file()):
        raise CheckpointError(f"{destination} exists; choose another name or ask to overwrite it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def check_destination(destination: epath.Path, overwrite: bool) -> None:
    """Raises `CheckpointError` unless `destination` may become a checkpoint folder."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise CheckpointError(f"{destination} is a file; choose a folder")
    names = {entry.name for entry in destination.iterdir()}
    if not names:
        return
    if not overwrite:
        raise CheckpointError(
            f"{destination} exists and is not empty; choose another folder or ask to overwrite it"
        )
    known = DESCRIPTIONS & names or any(name.endswith(".pt") for name in names)
    if not known:
        raise CheckpointError(f"{destination} holds no checkpoint, so it is not overwritten")
