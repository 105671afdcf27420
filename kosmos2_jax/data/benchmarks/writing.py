"""Writes files in the formats that `kosmos2_jax.data.benchmarks.reading` reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write(path: Path, content: Any) -> None:
    """Writes bytes and text as they are, and all else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Writes a line of JSON for each."""
    write(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes comma-separated values with a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write(path, text.getvalue())
