"""Packages of the npm registry, held to their checksums, for the programs beside this module."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from kosmos2_jax.errors import Kosmos2Error


def fetch_package(name: str, sha256: str, folder: Path) -> Path:
    """Returns the tarball of a package, fetched by npm from the registry it is set up for.

    Args:
      name: as "NAME@VERSION".
      sha256: of the tarball.
      folder: where it goes, which is there.

    Raises:
      Kosmos2Error: npm is not there, fails, or gives another file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Kosmos2Error("npm is not installed, which fetches the packages: install Node.js.")
    words = [npm, "pack", name, "--json", "--pack-destination", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Kosmos2Error(f"npm cannot fetch {name}: {' '.join(done.stderr.split())}")
    path = max(folder.glob("*.tgz"), key=lambda file: file.stat().st_mtime_ns)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise Kosmos2Error(f"{name} has the checksum {found}, not {sha256}: it is another file.")
    return path
