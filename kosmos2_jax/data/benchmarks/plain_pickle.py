"""Pickles of plain containers, read without running anything that they name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from kosmos2_jax.data.skips import DataError


class _PlainUnpickler(pickle.Unpickler):
    """Knows lists, dictionaries, tuples, sets, text, bytes and numbers, but no class or function.

    Whatever a pickle may do beyond that (call something, set attributes) it must first find by
    name, and nothing is found.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of it")


def load_plain_pickle(path: Path) -> Any:
    """Returns what a pickle of plain containers holds; text of Python 2 is read as UTF-8.

    Raises:
      DataError: the file is missing, cut short or no pickle, or holds anything but containers.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    # What a pickle of random bytes raises is anything; memory is bounded by the size of the file.
    except Exception as error:
        raise DataError(
            f"{str(path)!r} is not a pickle of plain lists and dictionaries ({error}): it was not "
            "loaded, get it again."
        ) from None
