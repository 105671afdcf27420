"""`kosmos2 batch`: its options, and the questions that it asks about every picture."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmos2_jax.commands.terminal import (
    Parser,
    add_checkpoint,
    add_length,
    positive,
    read_model,
    status,
)
from kosmos2_jax.errors import Kosmos2Error

if TYPE_CHECKING:
    from kosmos2_jax.inference.batch import Counts, Item
    from kosmos2_jax.inference.questions import Question, Questions

_TASKS = ("describe", "ground", "refer", "ask")


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    parser.add_argument(
        "source", metavar="PICTURES",
        help="a folder, a glob in quotes, or a .jsonl file with an object a line: image, and id, "
        "phrase, box, question or detailed where they are each picture's own",
    )  # fmt: skip
    parser.add_argument("--task", choices=_TASKS, default="describe", help="(%(default)s)")
    parser.add_argument("--phrase", help="of ground: what to look for")
    parser.add_argument("--question", help="of ask")
    parser.add_argument("--box", metavar="BOX", help="of refer: x1,y1,x2,y2 as fractions")
    parser.add_argument("--detailed", action="store_true", help="of describe: several sentences")
    parser.add_argument("--grounded", action="store_true", help="of ask: with the places of things")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE",
        help="JSON lines; what it has already is kept and not done again",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=positive, default=8, metavar="N",
        help="answers written at the same time (%(default)s)",
    )  # fmt: skip
    add_checkpoint(parser)
    add_length(parser)


def run(args: argparse.Namespace) -> None:
    """Answers, and says how many there are.

    Raises:
      Kosmos2Error: there are no pictures, the question is missing, the output is of another batch,
        or the model cannot be read.
    """
    from kosmos2_jax.inference.batch import BatchFile, find_items, run_batch

    items = find_items(args.source)
    if not args.output.parent.is_dir():
        raise Kosmos2Error(f"The folder {args.output.parent} does not exist: create it.")
    for item in items:
        _fields(args, item)
    with BatchFile(args.output, args.task) as output, status(f"reading {args.model}") as say:
        if all(item.id in output.done for item in items):
            print(f"{args.output}: all {len(items)} are done already, {output.bad} with an error")
            return
        from kosmos2_jax.inference.engine import Engine

        predictor = read_model(args, say)
        engine = Engine(predictor.config, predictor.params, predictor.vocabulary, rows=args.rows)
        ask = _asker(args, predictor.questions)
        with engine:
            counts = run_batch(engine, items, ask, output, _teller(say))
    print(f"{args.output}: {counts.done} of {counts.total}, {counts.bad} with an error")


def _fields(args: argparse.Namespace, item: Item) -> dict[str, Any]:
    """What is asked about a picture: its own line goes before the options.

    Raises:
      Kosmos2Error: something is missing or unknown.
    """
    needed = {"ground": "phrase", "refer": "box", "ask": "question"}.get(args.task)
    known = [needed] if needed else ["detailed"]
    unknown = [name for name in item.fields if name not in known]
    if unknown:
        raise Kosmos2Error(
            f"Picture {item.id!r} has the field {unknown[0]!r}, which {args.task} does not know: "
            f"it may have {known[0]!r}."
        )
    fields = {name: item.fields.get(name, getattr(args, name)) for name in known}
    if needed and fields[needed] is None:
        raise Kosmos2Error(
            f"Picture {item.id!r} has no {needed}: add --{needed}, or write one in its line."
        )
    return fields


def _asker(args: argparse.Namespace, questions: Questions) -> Callable[[Item], Question]:
    def ask(item: Item) -> Question:
        fields = _fields(args, item)
        if args.task == "describe":
            return questions.describe(item.image, bool(fields["detailed"]))
        if args.task == "ground":
            return questions.ground(item.image, str(fields["phrase"]))
        if args.task == "refer":
            box = fields["box"]
            return questions.refer(item.image, box.split(",") if isinstance(box, str) else box)
        return questions.ask(item.image, str(fields["question"]), args.grounded)

    return ask


def _teller(say: Callable[[str], None]) -> Callable[[Counts], None]:
    started, before = time.monotonic(), None

    def tell(counts: Counts) -> None:
        nonlocal before
        before = counts.done - 1 if before is None else before
        speed = (counts.done - before) / max(time.monotonic() - started, 1e-9)
        say(
            f"{counts.done} of {counts.total} pictures, {counts.bad} with an error, "
            f"{speed:.2f} a second"
        )

    return tell
