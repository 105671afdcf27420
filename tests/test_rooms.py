"""Imports point inwards: a room imports only rooms that stand before it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INWARDS_TO_OUTWARDS = (
    "version",
    "errors",
    "ranges",
    "startup",
    "line_file",
    "config",
    "grounding",
    "partitioning",
    "vision",
    "models",
    "evaluation",
    "interop",
    "data",
    "tasks",
    "inference",
    "serving",
    "training",
    "configs",
    "evaluate",
    "train",
    "inspect_data",
    "compile_step",
    "commands",
    "cli",
)
FILES = [
    *ROOT.glob("kosmos2_jax/**/*.py"),
    *ROOT.glob("tasks/*.py"),
    *ROOT.glob("configs/*.py"),
]


def room_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "kosmos2_jax" else parts[0]


def imported_rooms(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "kosmos2_jax" and len(part) > 1} & set(
        INWARDS_TO_OUTWARDS
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_inwards(file: Path):
    room = room_of(file)
    if room in ("__init__", "__main__"):
        return
    rank = INWARDS_TO_OUTWARDS.index(room)
    outer = {name for name in imported_rooms(file) if INWARDS_TO_OUTWARDS.index(name) > rank}
    assert not outer, f"{room} imports {sorted(outer)}, which stand further outwards"
