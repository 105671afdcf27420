"""A program of the trainer from its command line to its exit status.

What a user can mend is told in one line.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from etils import epath

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.training.host_memory import keep_memory
from kosmos2_jax.training.processes import start_processes
from kosmos2_jax.training.settings import parse_command_line
from kosmos2_jax.training.signals import EXIT_RESTART, Interrupted

_Run = TypeVar("_Run")


def run_story(name: str, settings: type[_Run], story: Callable[[_Run, epath.Path], Any]) -> int:
    """Reads `sys.argv`, joins the other processes if there are any, and runs `story`.

    `--debug` is taken off `sys.argv`; with it, errors show where they arose.

    Args:
      name: of the program, for messages.
      settings: `RunConfig` or `EvaluationRun`.
      story: what it does with the settings and the work folder.

    Returns:
      The exit status.
    """
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        command = parse_command_line(sys.argv, settings)
        if command.processes:
            start_processes(command.processes)
        else:
            keep_memory()
        story(command.run, command.workdir)
    except Kosmos2Error as error:
        if debug:
            raise
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        return EXIT_RESTART
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"{name}: error: {error}; make room on the disk and run the same command again",
            file=sys.stderr,
        )
        return 1
    return 0
