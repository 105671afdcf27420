"""On what a run runs: versions, devices, source and command line, for whoever repeats it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from etils import epath

from kosmos2_jax.interop.files import new_file
from kosmos2_jax.training.processes import first_does
from kosmos2_jax.version import __version__

ENVIRONMENT_JSONL = "environment.jsonl"
_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "seqio", "tensorflow",
    "ml_collections", "gin-config",
)  # fmt: skip


def record_environment(workdir: epath.Path) -> None:
    """Adds a line to `environment.jsonl`: each start of a run may be on another machine."""

    def write() -> None:
        path = workdir / ENVIRONMENT_JSONL
        former = path.read_text() if path.exists() else ""
        with new_file(path, overwrite=True) as partial:  # a bucket cannot append
            partial.write_text(f"{former}{json.dumps(environment())}\n")

    first_does(write)


def environment() -> dict[str, Any]:
    """What `record_environment` writes; starts JAX's backend."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "kosmos2_jax": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this file lies in, "+" if it was changed since; None for a wheel."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return None  # installed within somebody else's repository
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return None
