"""Raven's matrices, the fifty of Kosmos-1's IQ test (spec section 5.8).

How the authors' own archive (https://aka.ms/kosmos-iq50) is laid out could not be verified. This is
the layout in which a later study read it (Ahrabian et al. 2024, "The Curious Case of Nonverbal
Abstract Reasoning with Multi-Modal Large Language Models"): a picture a file, in folders by number,

    labels.tsv                  the right candidate of each matrix, 1 to 6, a line each
    obo/exp-1/query-1.png       what is given, in reading order
    obo/exp-1/answer-1.png      the six candidates
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from kosmos2_jax.data.benchmarks.reading import Collector, Reading, read_text, whole
from kosmos2_jax.data.benchmarks.records import MatrixRecord
from kosmos2_jax.data.skips import Unusable

FILES = ("labels.tsv", "obo")
_CANDIDATES = 6
# The prompt has words for so many.
_GIVEN = range(1, 10)


def read(folder: Path) -> Reading:
    """Reads the matrices.

    Raises:
      DataError: a file is missing or is another one.
    """
    labels, pictures = (folder / name for name in FILES)
    collector = Collector()
    lines = [line.partition("\t")[0] for line in read_text(labels).splitlines() if line.strip()]
    for number, label in enumerate(lines, 1):
        make = functools.partial(_matrix, pictures / f"exp-{number}", label)
        collector.add(f"exp-{number}", make)
    known = {f"exp-{number + 1}" for number in range(len(lines))}
    for path in sorted(pictures.iterdir()):
        if path.is_dir() and path.name not in known:
            collector.lose(path.name, "has no label")
    return collector.result(labels)


def _matrix(folder: Path, label: str) -> MatrixRecord:
    given, candidates = _pictures(folder, "query"), _pictures(folder, "answer")
    if len(given) not in _GIVEN:
        raise Unusable(f"{len(given)} pictures are given")
    if len(candidates) != _CANDIDATES:
        raise Unusable(f"{len(candidates)} candidates instead of {_CANDIDATES}")
    answer = whole(label, range(1, _CANDIDATES + 1), "label") - 1
    return MatrixRecord(folder.name, given, candidates, answer)


def _pictures(folder: Path, kind: str) -> tuple[str, ...]:
    """In the order of their numbers, which must not have gaps."""
    found = {}
    for path in folder.glob(f"{kind}-*.png"):
        if match := re.fullmatch(rf"{kind}-(\d+)\.png", path.name):
            found[int(match[1])] = str(path)
    if sorted(found) != list(range(1, len(found) + 1)):
        raise Unusable(f"pictures {kind}-N.png are not numbered from 1 without gaps")
    return tuple(found[number] for number in sorted(found))
