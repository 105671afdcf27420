"""Kosmos-2 in JAX: a language model that reads pictures and points at places in them.

The names below are imported at first use, so that `import kosmos2_jax` itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kosmos2_jax.version import __version__

if TYPE_CHECKING:
    from kosmos2_jax.config import Kosmos2Config
    from kosmos2_jax.errors import Kosmos2Error
    from kosmos2_jax.grounding.grounded_text import GroundedText
    from kosmos2_jax.inference.predictor import Predictor

__all__ = ["GroundedText", "Kosmos2Config", "Kosmos2Error", "Predictor", "__version__"]

_HOMES = {
    "GroundedText": "kosmos2_jax.grounding.grounded_text",
    "Kosmos2Config": "kosmos2_jax.config",
    "Kosmos2Error": "kosmos2_jax.errors",
    "Predictor": "kosmos2_jax.inference.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
