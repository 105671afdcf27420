"""`kosmos2 compile`: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
import os

from kosmos2_jax.commands.terminal import PROG, Parser, add_config, status
from kosmos2_jax.errors import Kosmos2Error


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    add_config(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE",
        help="v5e:4x4 and the like: the chip and how many lie along each side",
    )  # fmt: skip
    parser.add_argument(
        "--mesh", type=_mesh, metavar="AXIS=N,...",
        help="devices along each axis instead of the configuration's: fsdp=-1,tensor=2",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Compiles, and prints what was found.

    Raises:
      Kosmos2Error: a package is missing, or see `kosmos2_jax.compile_step.compile_run`.
    """
    # Before JAX is imported: nothing here asks whether this machine has TPUs.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # Of the machine it is on, which is none; unsaid, libtpu complains.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    with status("reading the configuration") as say:
        try:
            from kosmos2_jax.compile_step import compile_run, to_dict, to_text
            from kosmos2_jax.training.settings import parse_run
        except ModuleNotFoundError as error:
            raise Kosmos2Error(
                f"kosmos2 compile makes the step as training does, for which {error.name!r} is "
                "missing: run `pip install 'kosmos2-jax[train,compile]'`."
            ) from None
        settings = parse_run([PROG, f"--config={args.config}", *args.settings])
        say(f"compiling for {args.topology}, which takes a minute or more")
        compiled = compile_run(settings, args.topology, args.mesh)
    print(json.dumps(to_dict(compiled)) if args.json else to_text(compiled))


def _mesh(text: str) -> dict[str, int]:
    try:
        return {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not AXIS=N,AXIS=N") from None
