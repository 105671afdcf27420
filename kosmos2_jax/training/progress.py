"""What a run says to whoever watches it."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """One line on stderr, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
