"""`kosmos2 serve`: its options, and the server that it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from kosmos2_jax.commands.terminal import (
    LOOPBACK,
    Parser,
    add_checkpoint,
    note,
    port,
    positive,
    read_model,
    status,
    warm_up,
)
from kosmos2_jax.errors import Kosmos2Error

_STOPPING = 10  # seconds that requests under way have at the end


def add_arguments(parser: Parser) -> None:
    """The options of the command."""
    add_checkpoint(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; others see it (%(default)s)")
    add("--port", type=port, default=8000, help="0 for any that is free (%(default)s)")
    add("--name", default="kosmos-2", help="of the model, for clients (%(default)s)")
    add(
        "--api-key-file", type=Path, metavar="FILE",
        help="one key a line; clients send one as 'Authorization: Bearer KEY'",
    )  # fmt: skip
    add(
        "--allow-remote-images", action="store_true",
        help="fetch pictures given by http and https addresses, public ones only",
    )  # fmt: skip
    for option, default, text in (
        ("--rows", 8, "outputs written at the same time"),
        ("--max-waiting", 256, "outputs that may wait for a row"),
        ("--max-requests", 128, "requests at a time; further ones get status 503"),
        ("--max-new-tokens", 512, "longest answer that may be asked for, in tokens"),
        ("--max-megabytes", 16, "of a request"),
        ("--max-megapixels", 40, "of a picture"),
        ("--max-images", 8, "of a request"),
        ("--max-outputs", 16, "of a request"),
        ("--timeout", 120, "seconds that a request may take"),
    ):
        add(option, type=positive, default=default, metavar="N", help=f"{text} (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Serves until it is stopped.

    Raises:
      Kosmos2Error: a package is missing, the model cannot be read, or a file of keys not.
    """
    try:
        import uvicorn

        from kosmos2_jax.serving.app import make_app
        from kosmos2_jax.serving.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise Kosmos2Error(
            f"kosmos2 serve needs {error.name!r}, which is missing: run `pip install "
            "'kosmos2-jax[serve]'`."
        ) from None
    settings = ServerSettings(
        model=args.name,
        api_keys=_read_keys(args.api_key_file),
        max_body_bytes=args.max_megabytes * 10**6,
        max_pixels=args.max_megapixels * 10**6,
        max_images=args.max_images,
        max_outputs=args.max_outputs,
        max_new_tokens=args.max_new_tokens,
        max_requests=args.max_requests,
        timeout=args.timeout,
        allow_remote_images=args.allow_remote_images,
    )
    if args.host not in LOOPBACK and not settings.api_keys:
        note(f"whoever reaches {args.host} may use the model: --api-key-file asks for a key")
    with status(f"reading {args.model}") as say:
        from kosmos2_jax.inference.engine import Engine

        predictor = read_model(args, say)
        engine = Engine(
            predictor.config, predictor.params, predictor.vocabulary,
            rows=args.rows, max_waiting=args.max_waiting,
        )  # fmt: skip
        say("compiling")
        warm_up(engine, predictor)
    app = make_app(engine, predictor.questions, settings)
    uvicorn.run(
        app, host=args.host, port=args.port, server_header=False,
        timeout_graceful_shutdown=_STOPPING,
    )  # fmt: skip


def _read_keys(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    keys = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not keys:
        raise Kosmos2Error(f"{file} has no API key: write one a line.")
    return keys
