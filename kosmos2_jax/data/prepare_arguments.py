"""Arguments of the programs that prepare data: those of a format, of the output and of the run."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

from kosmos2_jax.data import prepare
from kosmos2_jax.data.readers import FORMATS, Format
from kosmos2_jax.data.readers.pictures import ORIGINAL, SHORT, SQUARE, PictureRules


def add_format(parser: argparse.ArgumentParser, name: str, format: Format) -> None:
    """Adds the arguments of a format."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = "names of sets" if name == "tfds" else "files, globs, or folders that hold them"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=what)
    own = parser.add_argument_group(f"options of {name}")
    for field in dataclasses.fields(format.options):
        add_option(own, field)
    out = parser.add_argument_group("output")
    out.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    out.add_argument("--source", help="name for counts and losses (the folder's by default)")
    out.add_argument("--split", default="train", help="name of the split (%(default)s)")
    out.add_argument(
        "--shards", type=positive, default=16, metavar="N",
        help="output files at least (%(default)s); as many as hosts will read them, or more",
    )  # fmt: skip
    out.add_argument(
        "--image-mode", choices=(ORIGINAL, SHORT, SQUARE), default=ORIGINAL,
        help="store pictures as they are, with their short side made --image-size (for crops), or "
        "squashed to a square (%(default)s)",
    )  # fmt: skip
    rules = PictureRules()
    out.add_argument(
        "--image-size", type=positive, default=rules.size, metavar="PIXELS",
        help="for --image-mode short and square (%(default)s)",
    )  # fmt: skip
    out.add_argument(
        "--jpeg-quality", type=positive, default=rules.quality, metavar="Q",
        help="of pictures that are made smaller (%(default)s)",
    )  # fmt: skip
    run = parser.add_argument_group("run")
    run.add_argument(
        "--max-skipped", type=float, default=0.05, metavar="SHARE",
        help="stop if more of the source than this is bad (%(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--processes", type=positive, default=os.cpu_count() or 1, metavar="N",
        help="on this machine (%(default)s)",
    )  # fmt: skip


def add_option(group: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    """Adds the argument of a field of a format's settings."""
    flag = "--" + field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING
    meaning = field.metadata["help"].replace("%", "%%")
    if field.default is False:
        group.add_argument(flag, action="store_true", help=meaning)
        return
    if not required and field.default is not None:
        meaning += f" ({field.default})"
    kind = type(field.default) if isinstance(field.default, int | float) else str
    default = None if required else field.default
    group.add_argument(flag, type=kind, default=default, required=required, help=meaning)


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def picture_rules(args: argparse.Namespace) -> PictureRules:
    """How pictures are to be stored."""
    return PictureRules(args.image_mode, args.image_size, args.jpeg_quality)


def plan_of(args: argparse.Namespace, stage: prepare.Stage | None = None) -> prepare.Plan:
    """Makes the plan that the arguments ask for.

    Args:
      args: parsed from what `add_format` adds, and `format`, its name.
      stage: see `prepare.Plan`.

    Raises:
      DataError: an option makes no sense, or an input is not there or empty.
    """
    options = FORMATS[args.format].options
    names = [field.name for field in dataclasses.fields(options)]
    return prepare.make_plan(
        args.format,
        args.inputs,
        args.out,
        options=options(**{name: getattr(args, name) for name in names}),
        # A stage sees pictures as they came, and stores them itself.
        pictures=picture_rules(args) if stage is None else None,
        source=args.source,
        split=args.split,
        num_shards=args.shards,
        stage=stage,
    )
