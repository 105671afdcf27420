"""`kosmos2 inspect`: its options, and the page that it writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from kosmos2_jax.commands.terminal import PROG, Parser, add_config, check_output, positive, status
from kosmos2_jax.errors import Kosmos2Error


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    add_config(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="HTML file to write"
    )
    parser.add_argument(
        "--n", type=positive, default=16, metavar="N", help="rows to show (%(default)s)"
    )
    parser.add_argument(
        "--count", type=positive, default=256, metavar="N",
        help="rows that the statistics are of (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR",
        help="the run's work folder, whose data are read, or made, where the configuration names "
        "no data.folder; by default some are made for this and removed",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run(args: argparse.Namespace) -> None:
    """Reads data and writes the page.

    Raises:
      Kosmos2Error: a package is missing, the file cannot be written, or see
        `kosmos2_jax.inspect_data.inspect_data`.
    """
    check_output(args.output, args.overwrite)
    with status("looking for the data") as say:
        try:
            from kosmos2_jax.inspect_data import inspect_data
            from kosmos2_jax.training.settings import parse_run
        except ModuleNotFoundError as error:
            raise Kosmos2Error(
                f"kosmos2 inspect reads data as training does, for which {error.name!r} is "
                "missing: run `pip install 'kosmos2-jax[train]'`."
            ) from None
        settings = parse_run([PROG, f"--config={args.config}", *args.settings])
        say("reading the data")
        page = inspect_data(settings, args.workdir, args.n, args.count)
    with open(args.output, "w" if args.overwrite else "x", encoding="utf-8") as file:
        file.write(page)
    print(f"{args.output}: open it in a browser")
