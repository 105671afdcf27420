"""How a program of the trainer ends: its status, and one line for what a user can mend."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.training.signals import EXIT_RESTART, Interrupted


def run_story(name: str, story: Callable[[], object]) -> int:
    """Runs `story`, which reads `sys.argv`, and gives the exit status.

    `--debug` is taken off `sys.argv`; with it, errors show where they arose.

    Args:
      name: of the program, for messages.
      story: what it does.
    """
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        story()
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
