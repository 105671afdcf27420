"""Reading and writing folders so that nothing is half written or overwritten by mistake."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kosmos2_jax.errors import CheckpointError

KOSMOS2_JSON = "kosmos2.json"
CONFIG_JSON = "config.json"
ADAPTER_CONFIG_JSON = "adapter_config.json"
TOKENIZER_MODEL = "sentencepiece.bpe.model"
DICT_TXT = "dict.txt"


def read_json(path: Path) -> dict[str, Any]:
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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `destination` once everything is written.

    The body writes into a hidden sibling; leaving it without an error renames the sibling, an
    error removes it, so that `destination` is either complete or untouched.

    Args:
      destination: the folder to create; it may exist if it is empty.
      overwrite: replace a checkpoint that is there. Any other folder is never replaced.

    Raises:
      CheckpointError: `destination` may not be written.
    """
    check_destination(destination, overwrite)
    destination = destination.absolute()  # "." has no name to put a sibling beside
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
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_file(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """As `new_folder`, for one file."""
    if destination.exists() and not (overwrite and destination.is_file()):
        raise CheckpointError(f"{destination} exists; choose another name or ask to overwrite it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, destination)
    finally:
        partial.unlink(missing_ok=True)


def check_destination(destination: Path, overwrite: bool) -> None:
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
    known = {KOSMOS2_JSON, CONFIG_JSON, ADAPTER_CONFIG_JSON} & names or any(
        name.endswith(".pt") for name in names
    )
    if not known:
        raise CheckpointError(f"{destination} holds no checkpoint, so it is not overwritten")
