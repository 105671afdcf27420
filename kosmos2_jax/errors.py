"""Errors that a user can mend.

Every one carries a single sentence that names the culprit and the mend. The command line
prints that sentence and leaves with a non-zero status; a traceback appears only with `--debug`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Kosmos2Error(ValueError):
    """Base of all errors caused by what the user gave, not by a defect of this code."""


class ImageError(Kosmos2Error):
    """A picture that cannot be read or is too large."""


class BoxError(Kosmos2Error):
    """A box that is reversed, outside the picture or not a number."""


class MarkupError(Kosmos2Error):
    """Text that holds tags where none are allowed, or annotations that do not fit the text."""


class CheckpointError(Kosmos2Error):
    """A checkpoint that is missing, cut short, of an unknown kind or of another model."""


class ConfigError(Kosmos2Error):
    """An unknown, missing or contradictory setting."""


class TrainingError(Kosmos2Error):
    """A run that cannot go on as it was set up."""


class PredictionError(Kosmos2Error):
    """Saved predictions that are malformed or of another task."""


class BusyError(Kosmos2Error):
    """More requests than can wait."""


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The mend of a name that is not among `known`: the most similar one, or else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
