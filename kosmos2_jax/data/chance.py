"""Chances that follow from what they are about, so that runs repeat (trap T-47)."""

from __future__ import annotations

import hashlib


def chance(*about: int | str) -> float:
    """Returns a number of [0, 1) that follows from the arguments alone, on every machine.

    Args:
      about: what is decided and for what, for example a seed, an epoch, the key of a document
        and the name of the decision. Other arguments give an independent number.
    """
    digest = hashlib.blake2b(repr(about).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)  # the bits that a float can hold
