"""Files of lines that go on growing: what is whole in them stays, however the program ended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from kosmos2_jax.errors import Kosmos2Error


class LineFile:
    """A file to which one program at a time adds lines."""

    def __init__(self, path: Path, read: Callable[[bytes, int], None], busy: Kosmos2Error) -> None:
        """Opens or creates the file, and takes off a last line that was not written to its end.

        Args:
          path: of the file.
          read: gets each whole line and its number, from 1 on, and may refuse it by an error.
          busy: is raised if another program is writing to the file.
        """
        self._file = open(path, "a+b", buffering=0)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            self._resume(path, read)
        except BaseException:
            self._file.close()
            raise

    def _resume(self, path: Path, read: Callable[[bytes, int], None]) -> None:
        whole = 0
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    read(line, number)
                    whole += len(line)
        self._file.truncate(whole)

    def write(self, lines: str) -> None:
        """Adds lines, each with its end."""
        data = memoryview(lines.encode(errors="backslashreplace"))
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Brings it to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()
