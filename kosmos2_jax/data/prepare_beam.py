"""A preparation as an Apache Beam pipeline: on this machine, or on any runner that Beam knows."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmos2_jax.data import prepare
from kosmos2_jax.data.skips import NewReasons
from kosmos2_jax.errors import ConfigError, Kosmos2Error
from kosmos2_jax.startup import prepare_environment

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

_LOCAL_RUNNER = "DirectRunner"
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_LINES = 10.0


def main(
    program: str,
    make_plan: Callable[[], prepare.Plan],
    processes: int,
    max_skipped: float,
    beam_flags: Sequence[str],
    summarise: Callable[[prepare.Plan], dict[str, Any]] = lambda plan: {},
) -> int:
    """Carries out a preparation, or what is left of it.

    Counts by reason go to stderr; the last line on stdout is JSON.

    Args:
      program: its name, for messages.
      make_plan: says what to do.
      processes: on this machine, where Beam's flags name no other runner.
      max_skipped: the largest share of the source that may be bad.
      beam_flags: of Apache Beam.
      summarise: what is added to the JSON when all is done.

    Returns:
      The exit status: 0, 1 for an error that the user can mend, 130 if interrupted.
    """
    began = time.monotonic()
    try:
        check_flags(beam_flags)
        plan = make_plan()
        todo = prepare.start(plan)
        say(f"{len(plan.paths)} files, {plan.num_shards} shards, {len(todo)} to be written")
        with progress_lines(plan, max_skipped):
            if todo:
                run_pipeline(plan, todo, processes, beam_flags)
        try:
            progress = prepare.finish(plan, max_skipped)
        finally:
            say(prepare.Watch(plan).look().skips.report())
        more = summarise(plan)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        return 130
    except Kosmos2Error as error:
        say(f"{program}: error: {error}")
        return 1
    summary = {
        "source": plan.source,
        "documents": progress.skips.num_kept(plan.source),
        "skipped": progress.skips.num_skipped(plan.read_as),
        "shards": progress.num_shards,
        "bytes": progress.num_bytes,
        "seconds": round(time.monotonic() - began, 1),
        "out": plan.out,
        **more,
    }
    print(json.dumps(summary), flush=True)
    return 0


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
    prepare_environment()
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
    processes = min(processes, len(todo))
    options = make_options(beam_flags, processes)
    if not is_local(options):
        with beam.Pipeline(options=options) as pipeline:
            shards = pipeline | beam.Create(list(todo)) | beam.Reshuffle()
            shards | beam.Map(functools.partial(prepare.convert, plan))
        return
    # The local runner deals everything out at once, and shards differ: so each of its processes
    # gets one element, and takes one shard after the other.
    with tempfile.TemporaryDirectory() as taken:
        with beam.Pipeline(runner=local_runner(options), options=options) as pipeline:
            turns = pipeline | beam.Create([list(todo)] * processes) | beam.Reshuffle()
            turns | beam.Map(functools.partial(convert_free, plan, taken))


def convert_free(plan: prepare.Plan, taken: str, todo: Sequence[int]) -> None:
    """Converts those of the shards that no other process of this machine has taken.

    Args:
      plan: what is prepared.
      taken: an empty folder that all these processes see.
      todo: shards.
    """
    for index in todo:
        try:
            Path(taken, str(index)).touch(exist_ok=False)
        except FileExistsError:
            continue
        prepare.convert(plan, index)


def make_options(beam_flags: Sequence[str], processes: int) -> PipelineOptions:
    """Beam's options; so many processes on this machine, where they name no other runner."""
    from apache_beam.options.pipeline_options import PipelineOptions

    local = ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"]
    return PipelineOptions([*local, "--default_sdk_harness_log_level=ERROR", *beam_flags])


def is_local(options: PipelineOptions) -> bool:
    """Whether everything runs on this machine."""
    from apache_beam.options.pipeline_options import StandardOptions

    return options.view_as(StandardOptions).runner in (None, _LOCAL_RUNNER)


def local_runner(options: PipelineOptions) -> PipelineRunner:
    """Beam's runner for this machine.

    Its DirectRunner would first try to download another runner; it itself, and the only part of it
    that has several processes, is the FnApiRunner.
    """
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))


@contextlib.contextmanager
def progress_lines(plan: prepare.Plan, max_skipped: float) -> Iterator[None]:
    """Tells now and then how far the run is, and stops it when too much is bad."""
    done = threading.Event()
    watch = prepare.Watch(plan)
    skips = watch.look().skips
    before, reasons = skips.num_kept(plan.source), NewReasons(skips)
    began = time.monotonic()

    def follow() -> None:
        told = began
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            progress = watch.stop_if_bad(max_skipped)
            for line in reasons.lines(progress.skips):
                say(line)
            now = time.monotonic()
            if now < told + _SECONDS_BETWEEN_LINES:
                continue
            told = now
            kept = progress.skips.num_kept(plan.source)
            counted = progress.skips.reasons(plan.read_as).items()
            why = "; ".join(f"{reason}: {n:,}" for reason, n in counted)
            say(
                f"{progress.num_shards}/{plan.num_shards} shards, {kept:,} documents, "
                f"{progress.skips.num_skipped(plan.read_as):,} skipped, "
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
