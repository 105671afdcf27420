"""What the commands share: parsers, checks of arguments, and what is said on the terminal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kosmos2_jax.errors import Kosmos2Error

if TYPE_CHECKING:
    from kosmos2_jax.inference.engine import Engine
    from kosmos2_jax.inference.predictor import Predictor

PROG = "kosmos2"
LOOPBACK = ("127.0.0.1", "::1", "localhost")  # hosts that only this machine reaches


class Parser(argparse.ArgumentParser):
    """Usage errors in one line; knows its `options`; no guessing at shortened ones.

    Where `passes_on` is set, options that are not its own are somebody else's.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.options: list[str] = []
        self.passes_on = False
        super().__init__(allow_abbrev=False, **kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*names, **kwargs)
        self.options += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        print(f"{PROG}: error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def positive(text: str) -> int:
    """Type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def port(text: str) -> int:
    """Type of an option that is a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def add_checkpoint(parser: Parser) -> None:
    """The options that name a model."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="checkpoint of any format: a Hugging Face folder, ours, or a fairseq .pt file",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="its files, if the model lacks them")
    parser.add_argument(
        "--quantization", choices=("none", "int8"), default="none",
        help="int8: a quarter of the memory, and sooner on a CPU",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="bfloat16: half the memory, and sooner on GPU and TPU",
    )  # fmt: skip


def read_model(args: argparse.Namespace, say: Callable[[str], None]) -> Predictor:
    """The model that the options name.

    Args:
      args: of `add_checkpoint` and perhaps `add_length`.
      say: is told how much is read; from `status`.

    Raises:
      CheckpointError: see `Predictor.from_pretrained`.
    """
    from kosmos2_jax.inference.predictor import Predictor

    length = {"max_new_tokens": args.max_new_tokens} if "max_new_tokens" in args else {}
    return Predictor.from_pretrained(
        args.model,
        args.tokenizer,
        quantization=args.quantization,
        dtype=args.dtype,
        progress=lambda done: say(f"reading {args.model}: {done / 1e9:.1f} GB"),
        **length,
    )


def warm_up(engine: Engine, predictor: Predictor) -> None:
    """A first answer of a server, so that its first client does not wait for the compiler."""
    import numpy as np

    sampling = dataclasses.replace(predictor.model.sampling, max_new_tokens=1)
    blank = np.zeros((1, 1, 3), np.uint8)
    engine.generate([predictor.questions.describe(blank, sampling=sampling).request])


def add_config(parser: Parser) -> None:
    """The option that names a run's configuration."""
    parser.add_argument(
        "--config", required=True, metavar="FILE",
        help="configuration of a run; --config.NAME=VALUE changes a setting, as in training",
    )  # fmt: skip


def add_length(parser: Parser) -> None:
    """The option that limits an answer."""
    parser.add_argument(
        "--max-new-tokens", type=positive, default=128, metavar="N",
        help="longest answer in tokens (%(default)s)",
    )  # fmt: skip


def check_output(path: Path, overwrite: bool) -> None:
    """Before long work: whether its result can be written.

    Raises:
      Kosmos2Error: a folder is there, or a file that is not to be replaced, or no folder around it.
    """
    if path.is_dir():
        raise Kosmos2Error(f"{path} is a folder: give --output the name of a file.")
    if path.exists() and not overwrite:
        raise Kosmos2Error(f"{path} exists: choose another name or add --overwrite.")
    if not path.parent.is_dir():
        raise Kosmos2Error(f"The folder {path.parent} does not exist: create it for --output.")


def note(text: str) -> None:
    """Says on stderr what is worth knowing and no error."""
    print(f"{PROG}: note: {text}", file=sys.stderr)


@contextlib.contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's stderr that says what is going on and vanishes at the end."""
    shown = ""

    def say(text: str) -> None:
        nonlocal shown
        if sys.stderr.isatty() and text != shown:
            shown = text
            print(f"\r\033[K{PROG}: {text} ...", end="", file=sys.stderr, flush=True)

    say(text)
    try:
        yield say
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
