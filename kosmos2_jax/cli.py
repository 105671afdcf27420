"""The command line: `kosmos2 describe|ground|refer|ask IMAGE ...`, and the commands of
`kosmos2_jax.commands`.

Nothing heavy is imported before a command runs, so that `kosmos2 --help` answers at once. What
the user can mend is told in one line on stderr, with exit status 1; usage errors have status 2.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kosmos2_jax.commands import batch as batch_command
from kosmos2_jax.commands import chat as chat_command
from kosmos2_jax.commands import compile as compile_command
from kosmos2_jax.commands import convert as convert_command
from kosmos2_jax.commands import demo as demo_command
from kosmos2_jax.commands import grit as grit_command
from kosmos2_jax.commands import inspect as inspect_command
from kosmos2_jax.commands import serve as serve_command
from kosmos2_jax.commands.terminal import (
    PROG,
    Parser,
    add_checkpoint,
    add_length,
    check_output,
    note,
    read_model,
    status,
)
from kosmos2_jax.errors import BoxError, Kosmos2Error
from kosmos2_jax.startup import prepare_environment
from kosmos2_jax.version import __version__

if TYPE_CHECKING:
    from PIL import Image

    from kosmos2_jax.grounding.boxes import Box
    from kosmos2_jax.grounding.grounded_text import GroundedText
    from kosmos2_jax.inference.predictor import Predictor

_SETTING = "--config."  # how settings of a run begin, which its configuration knows
_BOX_HELP = (
    "x1,y1,x2,y2 of the upper left and lower right corner: fractions of the picture's width and "
    "height (0.25,0.1,0.5,0.4), or pixels if any number is greater than 1 (160,64,320,256)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; those of the process by default.

    Returns:
      The exit status: 0, 1 for an error of the user's, 130 if interrupted.

    Raises:
      SystemExit: after `--help` and `--version` (status 0) and usage errors (2).
    """
    prepare_environment()
    words = _join_negative_box(list(sys.argv[1:] if argv is None else argv))
    name = next((word for word in words if not word.startswith("-")), None)
    parser, commands = _make_parser(name)
    _check_words(words, name, parser, commands)
    settings = [word for word in words if word.startswith(_SETTING)]
    args, others = parser.parse_known_args([word for word in words if word not in settings])
    chosen = commands[args.command]
    if others and not chosen.passes_on:
        chosen.error(f"unrecognized arguments: {' '.join(others)}")
    args.settings, args.others = settings, others
    _quieten(args.debug)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except (Kosmos2Error, ModuleNotFoundError, OSError) as error:
        if args.debug:
            raise
        print(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _describe(args: argparse.Namespace) -> None:
    image = _open_image(args)
    _answer(args, image, lambda predictor: predictor.describe(image, args.detailed))


def _ground(args: argparse.Namespace) -> None:
    from kosmos2_jax.grounding import prompts

    prompts.ground(args.phrase)  # says what is wrong with it before the model is read
    image = _open_image(args)
    _answer(args, image, lambda predictor: predictor.ground(image, args.phrase))


def _refer(args: argparse.Namespace) -> None:
    image = _open_image(args)
    box = _box_of(args.box, image)
    _answer(args, image, lambda predictor: predictor.refer(image, box), box)


def _ask(args: argparse.Namespace) -> None:
    from kosmos2_jax.grounding import prompts

    prompts.question_text(args.question)
    image = _open_image(args)
    _answer(args, image, lambda predictor: predictor.ask(image, args.question, args.grounded))


def _answer(
    args: argparse.Namespace,
    image: Image.Image,
    task: Callable[[Predictor], GroundedText],
    box: Box | None = None,
) -> None:
    """Reads the model, runs the task, prints its result and draws it where asked to."""
    with status(f"reading {args.model}") as say:
        predictor = read_model(args, say)
        say("looking at the picture")
        result = task(predictor)
    if args.output:
        from kosmos2_jax.inference.results import with_subject

        _draw(args, image, result if box is None else with_subject(result, box))
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=2))
    else:
        _print(result)


def _print(result: GroundedText) -> None:
    print(result.text)
    for span in result.spans:
        for i, box in enumerate(span.boxes):
            score = f"  score {span.scores[i]:.2f}" if span.scores else ""
            print(f"  {span.text}  {','.join(f'{value:.3f}' for value in box)}{score}")
    for problem in result.problems:
        note(problem)


def _open_image(args: argparse.Namespace) -> Image.Image:
    """The picture, after checking that the result can be written where asked."""
    from kosmos2_jax.vision.remote import open_image

    if args.output:
        check_output(args.output, args.overwrite)
        _picture_format(args.output)
    return open_image(args.image)


def _picture_format(path: Path) -> str:
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE:
        raise Kosmos2Error(
            f"{path} has no known ending for a picture: use .png, .jpg or .webp for --output."
        )
    return name


def _draw(args: argparse.Namespace, image: Image.Image, result: GroundedText) -> None:
    import io

    from kosmos2_jax.vision.drawing import draw_grounded

    encoded = io.BytesIO()
    draw_grounded(image, result).save(encoded, _picture_format(args.output))
    with open(args.output, "wb" if args.overwrite else "xb") as file:
        file.write(encoded.getvalue())


def _box_of(numbers: Sequence[float], image: Image.Image) -> Box:
    """The box as fractions; numbers are pixels if any is greater than 1."""
    from kosmos2_jax.grounding.boxes import check_box

    if not any(number > 1 for number in numbers):
        return check_box(numbers)
    sides = (image.width, image.height, image.width, image.height)
    if any(not 0 <= number <= side for number, side in zip(numbers, sides, strict=True)):
        shown = ",".join(f"{number:g}" for number in numbers)
        raise BoxError(
            f"Box {shown}, taken for pixels, is outside the picture, which has "
            f"{image.width}x{image.height}: give pixels within it, or fractions up to 1."
        )
    return check_box([number / side for number, side in zip(numbers, sides, strict=True)])


def _make_parser(chosen: str | None) -> tuple[Parser, dict[str, Parser]]:
    """The parser and those of its commands by name; only the chosen one has its arguments."""
    parser = Parser(
        prog=PROG,
        description="Kosmos-2: describes pictures, finds things in them, answers questions.",
        epilog="Example: kosmos2 ground dogs.jpg 'a dog' --model kosmos-2/ --output found.png",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    _add_debug(parser, default=False)
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, (add_arguments, run, text) in _COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == chosen:
            sub.set_defaults(run=run)
            _add_debug(sub, default=argparse.SUPPRESS)
            add_arguments(sub)
    return parser, dict(subparsers.choices)


def _add_debug(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show where an error arose"
    )


def _add_describe(parser: Parser) -> None:
    _add_image(parser)
    parser.add_argument("--detailed", action="store_true", help="several sentences")
    _add_model(parser)


def _add_ground(parser: Parser) -> None:
    _add_image(parser)
    parser.add_argument("phrase", metavar="PHRASE", help="what to look for: 'the dog on the left'")
    _add_model(parser)


def _add_refer(parser: Parser) -> None:
    _add_image(parser)
    parser.add_argument("--box", type=_numbers, required=True, metavar="BOX", help=_BOX_HELP)
    _add_model(parser)


def _add_ask(parser: Parser) -> None:
    _add_image(parser)
    parser.add_argument("question", metavar="QUESTION", help="'What is the dog doing?'")
    parser.add_argument("--grounded", action="store_true", help="answer with the places of things")
    _add_model(parser)


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="picture file, or its https address")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add_length(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="draw the boxes and the text on the picture"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--json", action="store_true", help="print text and boxes as JSON")


# Of each command what adds its arguments, what runs it, giving an exit status or nothing, and what
# it is.
_COMMANDS: dict[str, tuple[Callable[[Parser], None], Callable[..., int | None], str]] = {
    "describe": (_add_describe, _describe, "write a caption with the places of things"),
    "ground": (_add_ground, _ground, "find where something is"),
    "refer": (_add_refer, _refer, "say what is in a box"),
    "ask": (_add_ask, _ask, "answer a question"),
    "chat": (chat_command.add_arguments, chat_command.run, "talk about pictures"),
    "batch": (
        batch_command.add_arguments,
        batch_command.run,
        "ask the same about many pictures, into JSON lines",
    ),
    "convert": (
        convert_command.add_arguments,
        convert_command.run,
        "turn a checkpoint into another format",
    ),
    "inspect": (
        inspect_command.add_arguments,
        inspect_command.run,
        "show as a web page what training will see",
    ),
    "compile": (
        compile_command.add_arguments,
        compile_command.run,
        "compile training for TPUs that are not here",
    ),
    "serve": (serve_command.add_arguments, serve_command.run, "answer requests over HTTP"),
    "demo": (demo_command.add_arguments, demo_command.run, "try the model in the browser"),
    "grit": (
        grit_command.add_arguments,
        grit_command.run,
        "ground captions of your own pictures, as GRIT is made",
    ),
}


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers x1,y1,x2,y2")
    return numbers


def _join_negative_box(words: list[str]) -> list[str]:
    """`--box -1,0,1,1` as `--box=-1,0,1,1`, which argparse does not take for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--box" and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _check_words(
    words: Sequence[str], name: str | None, parser: Parser, commands: dict[str, Parser]
) -> None:
    """Names a misspelt command or option together with the nearest one that exists."""
    if name is not None and name not in commands:
        parser.error(f"unknown command {name!r}{_nearest(name, commands)}")
    chosen = commands.get(name, parser)
    known = [*parser.options, *chosen.options]
    for word in words[: words.index("--") if "--" in words else None]:
        option, equals, _ = word.partition("=")
        if option.startswith(_SETTING) and "--config" in known:
            if not equals:
                chosen.error(f"{option} lacks a value: settings are --config.NAME=VALUE")
        elif option.startswith("--") and option not in known and not chosen.passes_on:
            chosen.error(f"unknown option {option}{_nearest(option, known)}")


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"the Python package {package!r} is missing: install it with pip"
    return " ".join(str(error).split())


def _quieten(debug: bool) -> None:
    """Silences what libraries say while they are set up, such as which devices they looked for."""
    if debug:
        return
    import logging
    import warnings

    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
