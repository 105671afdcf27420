"""Turns a source of data into sharded TFRecords that the training tasks read.

    python tools/prepare_data.py FORMAT INPUT... --out DIR [options] [flags of Apache Beam]

It is an Apache Beam pipeline. By default it runs on this machine with a process for each core;
other runners are chosen by Beam's own flags (`--runner=FlinkRunner --flink_master=...`), and then
paths must be ones that every worker reaches (`gs://...`).

A run that was stopped goes on where it was when the same command is given again. The last line
printed is JSON. The exit status is 1 if the source cannot be used; what is already written stays.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import sys
from collections.abc import Sequence

from kosmos2_jax.data import prepare_beam
from kosmos2_jax.data.prepare_arguments import add_format, plan_of
from kosmos2_jax.data.readers import FORMATS

_PROG = "prepare_data.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares a source; gives the exit status."""
    args, beam_flags = parse(sys.argv[1:] if argv is None else argv)
    plan = functools.partial(plan_of, args)
    return prepare_beam.main(_PROG, plan, args.processes, args.max_skipped, beam_flags)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line into our arguments and Beam's flags."""
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="One line that works for each format:\n\n"
        + "\n".join(f"  python tools/{_PROG} {format.example}" for format in FORMATS.values())
        + f"\n\n`{_PROG} FORMAT --help` shows the options of a format.",
        allow_abbrev=False,
    )
    parsers = parser.add_subparsers(metavar="FORMAT", dest="format", required=True)
    for name, format in FORMATS.items():
        sub = parsers.add_parser(name, help=format.summary, allow_abbrev=False)
        sub.description = f"{format.summary}.\n\n  python tools/{_PROG} {format.example}"
        add_format(sub, name, format)
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in FORMATS and not {"-h", "--help"} & set(argv):
        close = difflib.get_close_matches(words[0], FORMATS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(FORMATS)}."
        parser.error(f"there is no format {words[0]!r}: {hint}")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    sys.exit(main())
