"""Folders for what writes to disks only, wherever its files belong."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from etils import epath

from kosmos2_jax.interop.files import as_path, in_bucket, told_of_bucket


class LocalFolder:
    """Where TensorBoard, the profiler and metrics line by line are written.

    On a disk it is the folder itself. For one in a bucket, whose objects cannot be appended to, it
    is a temporary one, and `push` copies what is new in it.

    Attributes:
      path: on a disk.
    """

    def __init__(self, place: epath.PathLike) -> None:
        """`place` is where the files belong."""
        self._place = as_path(place)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if in_bucket(self._place):
            self._temporary = tempfile.TemporaryDirectory(prefix="kosmos2-")
        self.path = Path(self._temporary.name if self._temporary else self._place)
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._last = time.monotonic()

    def push(self, every: float = 0.0) -> None:
        """Copies files that are new or have changed, unless the last time is `every` seconds ago.

        Raises:
          TrainingError: the bucket cannot be written to.
        """
        if self._temporary is None or time.monotonic() - self._last < every:
            return
        for file in sorted(self.path.rglob("*")):
            if not file.is_file():
                continue
            stat = file.stat()
            version = (stat.st_size, stat.st_mtime_ns)
            if self._pushed.get(file) != version:
                copy = self._place / file.relative_to(self.path)
                with told_of_bucket(copy):
                    copy.write_bytes(file.read_bytes())
                self._pushed[file] = version
        self._last = time.monotonic()
