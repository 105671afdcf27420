"""Traces of chosen updates, for XProf or TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from kosmos2_jax.training.local_folder import LocalFolder

PROFILE_FOLDER = "profile"


class Profiler:
    """Traces the updates from one to another into `profile/` of the work folder.

    The stages of the model are named in the trace by `jax.named_scope`.
    """

    def __init__(self, workdir: epath.Path, steps: Sequence[int]) -> None:
        """`steps` are the first update and the last one, or empty for none."""
        self._folder = LocalFolder(workdir / PROFILE_FOLDER)
        self._first, self._last = steps or (0, 0)
        self._tracing = False

    def before(self, step: int) -> None:
        """To be called before an update is made."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder.path))
            self._tracing = True

    def after(self, step: int, metrics: Any) -> None:
        """To be called with the metrics of an update, for which only the last one waits."""
        if self._tracing and step == self._last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._folder.push()
            self._tracing = False
