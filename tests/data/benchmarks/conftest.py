"""Writes files as benchmarks publish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.reading import Reading


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write({name: content})`: text and bytes as they are, all else as JSON; None is a picture.

    A list in a file that ends in .jsonl becomes a line each. Returns the folder.
    """

    def write_files(files: dict[str, Any]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".jsonl") and isinstance(content, list):
                content = "".join(
                    f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in content
                )
            if content is None:
                content = b"nobody opens pictures here"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                path.write_text(text, encoding="utf-8")
        return tmp_path

    return write_files


@pytest.fixture
def read() -> Callable[..., Reading]:
    """`read(name, folder, split)`, where all files are there."""

    def read_benchmark(name: str, folder: Path, split: str | None = None) -> Reading:
        benchmark = BENCHMARKS[name]
        split = split or benchmark.splits[0]
        assert benchmark.missing(folder, split) == []
        return benchmark.read(folder, split)

    return read_benchmark


def lost(reading: Reading) -> dict[str, str]:
    """Reasons by id."""
    found = {problem.id: problem.reason for problem in reading.problems}
    assert len(found) == len(reading.problems)
    return found
