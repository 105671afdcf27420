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
import contextlib
import dataclasses
import difflib
import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kosmos2_jax.data import prepare
from kosmos2_jax.data.readers import FORMATS, Format
from kosmos2_jax.data.readers.pictures import ORIGINAL, SHORT, SQUARE, PictureRules
from kosmos2_jax.data.skips import NewReasons
from kosmos2_jax.errors import ConfigError, Kosmos2Error

_PROG = "prepare_data.py"
_LOCAL_RUNNER = "DirectRunner"
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_LINES = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares a source; gives the exit status."""
    args, beam_flags = parse(sys.argv[1:] if argv is None else argv)
    began = time.monotonic()
    try:
        check_flags(beam_flags)
        plan = plan_of(args)
        todo = prepare.start(plan)
        say(f"{len(plan.paths)} files, {plan.num_shards} shards, {len(todo)} to be written")
        with progress_lines(plan, args.max_skipped):
            if todo:
                run_pipeline(plan, todo, args.processes, beam_flags)
        try:
            progress = prepare.finish(plan, args.max_skipped)
        finally:
            say(prepare.Watch(plan).look().skips.report())
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        return 130
    except Kosmos2Error as error:
        say(f"{_PROG}: error: {error}")
        return 1
    summary = {
        "source": plan.source,
        "documents": progress.skips.num_kept(plan.source),
        "skipped": progress.skips.num_skipped(plan.source),
        "shards": progress.num_shards,
        "bytes": progress.num_bytes,
        "seconds": round(time.monotonic() - began, 1),
        "out": plan.out,
    }
    print(json.dumps(summary), flush=True)
    return 0


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
        add_format(parsers.add_parser(name, help=format.summary, allow_abbrev=False), name, format)
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in FORMATS and not {"-h", "--help"} & set(argv):
        close = difflib.get_close_matches(words[0], FORMATS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(FORMATS)}."
        parser.error(f"there is no format {words[0]!r}: {hint}")
    return parser.parse_known_args(argv)


def add_format(parser: argparse.ArgumentParser, name: str, format: Format) -> None:
    """Adds the arguments of a format."""
    parser.description = f"{format.summary}.\n\n  python tools/{_PROG} {format.example}"
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


def plan_of(args: argparse.Namespace) -> prepare.Plan:
    """Makes the plan that the arguments ask for."""
    options = FORMATS[args.format].options
    names = [field.name for field in dataclasses.fields(options)]
    return prepare.make_plan(
        args.format,
        args.inputs,
        args.out,
        options=options(**{name: getattr(args, name) for name in names}),
        pictures=PictureRules(args.image_mode, args.image_size, args.jpeg_quality),
        source=args.source,
        split=args.split,
        num_shards=args.shards,
    )


def check_flags(beam_flags: Sequence[str]) -> None:
    """Refuses what is misspelt: Beam itself ignores flags that it does not know.

    Raises:
      ConfigError: a flag is neither ours nor Beam's, or Beam is not installed.
    """
    if not beam_flags:
        return
    import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    known = PipelineOptions([]).get_all_options(drop_default=False)
    for flag in beam_flags:
        name = flag.lstrip("-").partition("=")[0]
        if flag.startswith("-") and name not in known and name.removeprefix("no_") not in known:
            raise ConfigError(f"There is no option {flag.partition('=')[0]!r}, here or in Beam.")


def import_beam() -> Any:
    """Imports Apache Beam, which takes seconds, and keeps it and TensorFlow from chatting.

    Raises:
      ConfigError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.ERROR)
    try:
        import apache_beam
    except ModuleNotFoundError:
        raise ConfigError(
            "Apache Beam is not installed: run `pip install kosmos2-jax[prepare]`."
        ) from None
    return apache_beam


def run_pipeline(
    plan: prepare.Plan, todo: Sequence[int], processes: int, beam_flags: Sequence[str]
) -> None:
    """Converts these shards of a plan with Apache Beam."""
    beam = import_beam()
    with beam.Pipeline(**runner_and_options(beam_flags, min(processes, len(todo)))) as pipeline:
        shards = pipeline | beam.Create(list(todo)) | beam.Reshuffle()
        shards | beam.Map(functools.partial(prepare.convert, plan))


def runner_and_options(beam_flags: Sequence[str], processes: int) -> dict[str, Any]:
    """Returns the arguments of a Beam pipeline.

    Beam's DirectRunner would first try to download another runner; it itself, and the only part
    of it that has several processes, is the FnApiRunner.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    local = ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"]
    quiet = ["--default_sdk_harness_log_level=ERROR"]
    options = PipelineOptions([*local, *quiet, *beam_flags])
    if options.view_as(StandardOptions).runner not in (None, _LOCAL_RUNNER):
        return {"options": options}
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    runner = fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))
    return {"runner": runner, "options": options}


@contextlib.contextmanager
def progress_lines(plan: prepare.Plan, max_skipped: float) -> Iterator[None]:
    """Tells now and then how far the run is, and stops it when too much is bad."""
    done = threading.Event()
    watch = prepare.Watch(plan)

    def follow() -> None:
        began = told = time.monotonic()
        skips = watch.look().skips
        before, reasons = skips.num_kept(plan.source), NewReasons(skips)
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            progress = watch.stop_if_bad(max_skipped)
            for line in reasons.lines(progress.skips):
                say(line)
            now = time.monotonic()
            if now < told + _SECONDS_BETWEEN_LINES:
                continue
            told = now
            kept = progress.skips.num_kept(plan.source)
            counted = progress.skips.reasons(plan.source).items()
            why = "; ".join(f"{reason}: {n:,}" for reason, n in counted)
            say(
                f"{progress.num_shards}/{plan.num_shards} shards, {kept:,} documents, "
                f"{progress.skips.num_skipped(plan.source):,} skipped, "
                f"{(kept - before) / (now - began):,.0f} documents/s" + (f" ({why})" if why else "")
            )

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def say(line: str) -> None:
    """Tells the user something beside the result."""
    if line:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
