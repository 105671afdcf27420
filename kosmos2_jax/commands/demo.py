"""`kosmos2 demo`: a page in the browser to try a model out."""

from __future__ import annotations

import argparse
from pathlib import Path

from kosmos2_jax.commands.terminal import (
    LOOPBACK,
    Parser,
    add_checkpoint,
    add_length,
    note,
    port,
    read_model,
    status,
    warm_up,
)
from kosmos2_jax.errors import Kosmos2Error


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    add_checkpoint(parser)
    add_length(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; others see it (%(default)s)")
    add("--port", type=port, default=7860, help="0 for any that is free (%(default)s)")
    add("--name", help="of the model, on the page (the name of its folder)")
    add(
        "--examples", type=Path, metavar="DIR",
        help="folder of pictures to choose from (drawn shapes)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is stopped.

    Raises:
      Kosmos2Error: a package is missing, the model cannot be read, or there are no examples.
    """
    try:
        import uvicorn

        from kosmos2_jax.serving.demo.examples import draw_examples, read_examples
        from kosmos2_jax.serving.demo.page import make_app
    except ModuleNotFoundError as error:
        raise Kosmos2Error(
            f"kosmos2 demo needs {error.name!r}, which is missing: run `pip install "
            "'kosmos2-jax[demo]'`."
        ) from None
    examples = None if args.examples is None else read_examples(args.examples)
    if args.host not in LOOPBACK:
        note(f"whoever reaches {args.host} may use the model")
    with status(f"reading {args.model}") as say:
        predictor = read_model(args, say)
        if examples is None:
            examples = draw_examples(predictor.config.vision.image_size)
        say("compiling")
        warm_up(predictor.engine, predictor)
        app = make_app(predictor, args.name or Path(args.model).resolve().name, examples)
    # Pages keep a connection open for as long as they are shown.
    uvicorn.run(
        app, host=args.host, port=args.port, server_header=False, access_log=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
