"""`kosmos2 convert`: its options, and what it prints."""

from __future__ import annotations

import argparse

from kosmos2_jax.commands.terminal import Parser, note, status


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    parser.add_argument("source", metavar="SRC", help="folder or .pt file, of any format")
    parser.add_argument("destination", metavar="DST", help="folder to create; or a .pt file")
    parser.add_argument(
        "--to", required=True, choices=("hf", "fairseq", "orbax"),
        help="hf: for transformers; fairseq: kosmos-2.pt of the official code; orbax: ours",
    )  # fmt: skip
    parser.add_argument("--tokenizer", metavar="DIR", help="its files, if SRC lacks them")
    parser.add_argument(
        "--adapter", metavar="DIR", help="LoRA adapter in peft's files, to be merged into the model"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is at DST"
    )


def run(args: argparse.Namespace) -> None:
    """Converts, and says what was done.

    Raises:
      Kosmos2Error: see `kosmos2_jax.interop.convert.convert`.
    """
    from kosmos2_jax.interop.convert import convert

    options = {
        "tokenizer": args.tokenizer,
        "adapter": args.adapter,
        "overwrite": args.overwrite,
    }
    with status(f"converting {args.source}"):
        done = convert(args.source, args.destination, args.to, **options)
    print(
        f"{args.destination}: {done.destination_format} from {done.source_format}, "
        f"{done.num_parameters:,} parameters"
    )
    if not done.has_tokenizer:
        note("the source has no tokenizer, so the copy has none either")
