"""Which tasks there are over benchmarks, where their files lie, and how they are answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kosmos2_jax.data.benchmarks import BENCHMARKS


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
    """A task over a split of a benchmark.

    Attributes:
      benchmark: name in `BENCHMARKS`.
      split: of the benchmark.
      folder: of the download.
      asked: reads it once, and gives its `records` by id and its `problems`, the examples lost.
      num_beams: of the beam search that writes answers; 1 for the most likely token each time.
      shots: demonstrations before each question, of the benchmark's training split.
    """

    benchmark: str
    split: str
    folder: Path
    asked: Callable[[], Any]
    num_beams: int = 1
    shots: int = 0

    def missing(self) -> list[str]:
        """The files and folders that are not there."""
        entry = BENCHMARKS[self.benchmark]
        splits = (self.split, entry.train) if self.shots else (self.split,)
        found = [name for split in splits for name in entry.missing(self.folder, split)]
        return list(dict.fromkeys(found))


# Stands in a folder of benchmarks that are drawn; see `kosmos2_jax.data.drawn_benchmarks`.
DRAWN_JSON = "drawn.json"

# By name; `kosmos2_jax.data.benchmark_tasks` adds them.
BENCHMARK_TASKS: dict[str, BenchmarkTask] = {}


def prepared_tasks() -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the tasks whose files are all there, and what is missing of the others, by name."""
    ready, missing = [], {}
    for name, task in BENCHMARK_TASKS.items():
        if files := task.missing():
            source = BENCHMARKS[task.benchmark].source
            missing[name] = f"{task.folder} lacks {', '.join(files)}, from {source}"
        else:
            ready.append(name)
    return tuple(ready), missing
