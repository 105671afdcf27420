"""Leaving in good order when the machine is wanted back: SIGTERM, and Ctrl-C once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

# sysexits.h: "temporary failure, the user is invited to try again". Schedulers can be told to
# start a job again on this status and on no other (Slurm: `scontrol requeue`; Kubernetes:
# podFailurePolicy).
EXIT_RESTART = os.EX_TEMPFAIL
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run that was asked to stop, and did so with everything saved; no error of anybody's."""


class StopRequest:
    """Within `with`, the first SIGTERM or SIGINT is remembered instead of ending the program.

    The signal after it does what it would do to a program without handlers: it ends it at once.
    In any other thread than the main one, which alone may set handlers, signals keep their
    meaning.

    Attributes:
      signal: the one that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        # Set here and not when the second one comes, so that it need not wait for Python, which
        # may be in the middle of a long call.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
