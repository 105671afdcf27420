"""Checksums of a folder's files, since Orbax restores flipped bits without a word.

Tried with Orbax 0.12: a truncated or missing file of array data is an error when restored, a
flipped bit in one is not. So every checkpoint carries the size and SHA-256 of each of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"
# Orbax writes into these two when it commits, which is after the manifest is written. Restoring
# does not need them.
_NOT_COVERED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json`, at once or not at all, over all files that are now in `folder`."""
    files = {
        str(path.relative_to(folder)): [path.stat().st_size, _sha256(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and str(path.relative_to(folder)) not in _NOT_COVERED
    }
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w") as file:
        json.dump({"sha256": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of `folder`, or None if they are those of its manifest.

    Sizes are compared before anything is read, so that a file cut short is found at once.
    """
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        expected = {name: (int(size), str(digest)) for name, (size, digest) in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, (size, _) in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    for name, (_, digest) in expected.items():
        try:
            if _sha256(folder / name) != digest:
                return f"{name} has other content than was written"
        except OSError as error:  # a bad sector
            return f"{name} cannot be read ({error.strerror})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
