"""Torch files, read so that one from a stranger can run no code."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from kosmos2_jax.errors import CheckpointError


def import_torch(what: str) -> ModuleType:
    """torch, for "reading" or "writing" a file.

    Raises:
      CheckpointError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise CheckpointError(f"{what} a torch file needs torch: pip install torch") from None
    return torch


def load_torch_file(file: Path) -> Any:
    """What a torch file holds, its tensors mapped from the file.

    Raises:
      CheckpointError: torch is missing, the file is cut short, or holds something else than
        weights.
    """
    torch = import_torch("reading")
    try:
        # fairseq keeps its command line as a Namespace; nothing else needs to be trusted.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        unsupported = re.search(r"GLOBAL (\S+)", str(error))
        culprit = f"an object of type {unsupported[1]}" if unsupported else "unreadable data"
        raise CheckpointError(
            f"{file} holds {culprit} besides weights, which is not loaded for safety"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "TorchScript" in reason:
            raise CheckpointError(
                f"{file} is a program (TorchScript), which is not loaded for safety: save the "
                "state_dict() of the model it holds"
            ) from None
        raise CheckpointError(f"{file} is cut short or no torch file ({reason})") from None
