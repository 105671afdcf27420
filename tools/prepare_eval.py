"""Checks the download of a benchmark before a model is measured on it.

    python tools/prepare_eval.py TASK --from DIR [--split SPLIT] [--tfds DATA_DIR]

says which files are missing and where they come from, or reads all examples, tells how many there
are, and names those that cannot be asked (a missing picture, a box without area, ...). With --tfds
files that are missing are written out of what tensorflow-datasets has prepared; nothing is
downloaded. The last line printed is JSON. The exit status is 1 if files are missing or are other
ones.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.data.benchmarks import BENCHMARKS, Benchmark
from kosmos2_jax.data.benchmarks.reading import Reading
from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.startup import prepare_environment

_PROG = "prepare_eval.py"
_SHOWN_PROBLEMS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Checks a benchmark; gives the exit status."""
    args = parse(argv)
    benchmark = BENCHMARKS[args.task]
    split = args.split or benchmark.splits[0]
    try:
        missing = benchmark.missing(args.folder, split)
        if missing and args.tfds:
            prepare_environment()
            from kosmos2_jax.data.tfds_benchmarks import write_published  # takes seconds

            write_published(args.task, split, args.tfds.expanduser(), args.folder)
            missing = benchmark.missing(args.folder, split)
        if missing:
            say_missing(benchmark, args.folder, split, missing)
            print(json.dumps({"task": args.task, "split": split, "missing": missing}))
            return 1
        reading = benchmark.read(args.folder, split)
    except Kosmos2Error as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 1
    say_problems(reading)
    counts = {"examples": len(reading.records), "lost": len(reading.problems)}
    print(json.dumps({"task": args.task, "split": split, **counts}))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    width = max(map(len, BENCHMARKS))
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="tasks:\n"
        + "\n".join(f"  {name:<{width}}  {b.summary}" for name, b in BENCHMARKS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=BENCHMARKS, metavar="TASK", help="one of those below")
    parser.add_argument(
        "--from", dest="folder", type=Path, required=True, metavar="DIR", help="of the download"
    )
    parser.add_argument("--split", help="which split (the usual one by default)")
    parser.add_argument(
        "--tfds", type=Path, metavar="DATA_DIR", help="usually ~/tensorflow_datasets"
    )
    return parser.parse_args(argv)


def say_missing(benchmark: Benchmark, folder: Path, split: str, missing: Sequence[str]) -> None:
    """Says which files are not there, what should be, and where they come from."""
    print(f"{folder} lacks, for {benchmark.summary}, split {split}:")
    for name in benchmark.files(split):
        print(f"  {'missing' if name in missing else 'there  '}  {name}")
    print(f"They come from {benchmark.source}")


def say_problems(reading: Reading) -> None:
    """Names the first examples that are lost; whoever scores counts each as wrong."""
    for problem in reading.problems[:_SHOWN_PROBLEMS]:
        print(f"  lost: {problem.id}: {problem.reason}")
    if len(reading.problems) > _SHOWN_PROBLEMS:
        print(f"  and {len(reading.problems) - _SHOWN_PROBLEMS} more")
    kinds = collections.Counter(type(record).__name__ for record in reading.records)
    for kind, count in kinds.items():
        print(f"  {count} of {kind}")


if __name__ == "__main__":
    sys.exit(main())
