"""What a run says to whoever watches it."""

from __future__ import annotations

import sys

from tqdm import tqdm

from kosmos2_jax.training.processes import is_first


def say(text: str) -> None:
    """One line on stderr, above the progress bar if there is one; process 0 speaks for all."""
    if is_first():
        tqdm.write(text, file=sys.stderr)
