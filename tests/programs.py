"""Programs of the repository: those of tools/ imported, and commands that serve until stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds, for machines that are busy with other things


def tool(name: str) -> ModuleType:
    """A program of tools/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def command_that_serves(*words: str) -> Iterator[str]:
    """The address that `kosmos2 WORDS` tells; at the end SIGTERM must stop it in good order."""
    command = [sys.executable, "-m", "kosmos2_jax", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = server.stderr.readline()
                assert line, said
                said += line
            yield found.group()
            server.send_signal(signal.SIGTERM)
            rest = server.communicate(timeout=PATIENCE)[1]
            assert server.returncode in (0, -signal.SIGTERM) and "Traceback" not in rest
        finally:
            server.kill()
