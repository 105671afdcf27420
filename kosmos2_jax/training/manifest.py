"""Checksums of a folder's files, since Orbax restores flipped bits without a word.

Tried with Orbax 0.12: a truncated or missing file of array data is an error when restored, a
flipped bit in one is not. So every checkpoint carries the size and SHA-256 of each of its files. In
a bucket, which checks its objects itself and where reading all of them again would take long, sizes
alone.
"""

from __future__ import annotations

import hashlib
import json
import os

from etils import epath

from kosmos2_jax.interop.files import as_path, files_in, in_bucket, new_file

MANIFEST = "manifest.json"
# Orbax writes into these two when it commits, which is after the manifest is written. Restoring
# does not need them.
_COMMITTED = "commit_success.txt"
_NOT_COVERED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", _COMMITTED})


def write_manifest(folder: epath.PathLike) -> None:
    """Writes `manifest.json`, at once or not at all, over all files that are now in `folder`."""
    folder = as_path(folder)
    files = {
        _name(path, folder): [path.stat().length, _sha256(path)]
        for path in files_in(folder)
        if _name(path, folder) not in _NOT_COVERED
    }
    with new_file(folder / MANIFEST) as partial, partial.open("w") as file:
        json.dump({"sha256": files}, file, indent=1)
        if not in_bucket(partial):
            file.flush()
            os.fsync(file.fileno())


def is_committed(folder: epath.Path) -> bool:
    """Whether Orbax has written all of it: a folder of that name, in a bucket also a mark in it."""
    return not in_bucket(folder) or (folder / _COMMITTED).exists()


def find_damage(folder: epath.PathLike) -> str | None:
    """What is wrong with the files of `folder`, or None if they are those of its manifest.

    Sizes are compared before anything is read, so that a file cut short is found at once.
    """
    folder = as_path(folder)
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        expected = {name: (int(size), digest) for name, (size, digest) in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, (size, _) in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().length) != size:
            return f"{name} has {found} bytes instead of {size}"
    for name, (_, digest) in expected.items():
        try:
            if _sha256(folder / name) != digest:
                return f"{name} has other content than was written"
        except OSError as error:  # a bad sector
            return f"{name} cannot be read ({error.strerror})"
    return None


def _name(path: epath.Path, folder: epath.Path) -> str:
    return str(path.relative_to(folder))


def _sha256(path: epath.Path) -> str | None:
    if in_bucket(path):
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
