"""What a compiled program sends between its devices, read from its text (XLA's HLO)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|called_computations)=\{?%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_KNOWN_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in a program.

    Attributes:
      count: how often one runs.
      sent: bytes that a device sends, by the usual algorithms on rings.
      groups: sizes of the groups of devices that exchange something.
      at_least: some run in a loop whose number of rounds is not known, and count once.
    """

    count: int
    sent: int
    groups: tuple[int, ...]
    at_least: bool


def collectives_of(text: str) -> dict[str, Traffic]:
    """The collectives of a program by kind, rounds of loops counted.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """
    computations, entry = _computations(text)
    found: dict[str, list[tuple[int, int, int, bool]]] = {}
    for times, known, name, line in _walk(computations, entry, 1, True):
        kind, size, group = _collective(name, line)
        if group > 1 and size:
            found.setdefault(kind, []).append((times, times * size, group, not known))
    return {
        kind: Traffic(
            count=sum(times for times, _, _, _ in found[kind]),
            sent=sum(sent for _, sent, _, _ in found[kind]),
            groups=tuple(sorted({group for _, _, group, _ in found[kind]})),
            at_least=any(unknown for _, _, _, unknown in found[kind]),
        )
        for kind in KINDS
        if kind in found
    }


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _walk(
    computations: dict[str, list[str]], name: str, times: int, known: bool
) -> Iterator[tuple[int, bool, str, str]]:
    """(how often, whether that is known, computation, line) of each collective's start."""
    for line in computations.get(name, ()):
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        operation = instruction[3].removesuffix("-start")
        if operation in KINDS:
            yield times, known, name, line
            continue
        rounds, sure = 1, known
        if operation == "while":
            trips = _trips(computations, line)
            rounds, sure = trips or 1, known and trips is not None
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip(" %") for branch in branches.split(",")]
        for other in called:
            yield from _walk(computations, other, times * rounds, sure)


def _trips(computations: dict[str, list[str]], line: str) -> int | None:
    """Rounds of a loop: XLA says so, or its condition compares with a single constant."""
    if told := _KNOWN_TRIPS.search(line):
        return int(told[1])
    condition = _CONDITION.search(line)
    lines = computations.get(condition[1], []) if condition else []
    for other in [name for each in lines for name in _CALLED.findall(each)]:
        lines = lines + computations.get(other, [])
    limits = {int(found[1]) for each in lines for found in _CONSTANT.finditer(each)}
    return limits.pop() if len(limits) == 1 else None


def _collective(computation: str, line: str) -> tuple[str, int, int]:
    """Kind, bytes that a device sends, and size of the group."""
    _, result, operation = _INSTRUCTION.match(line).groups()
    kind, started = operation.removesuffix("-start"), operation.endswith("-start")
    arrays = [
        math.prod(int(n) for n in dims.split(",") if n) * _BYTES.get(dtype, 4)
        for dtype, dims in _ARRAY.findall(result)
    ]
    group = _group_size(line)
    if kind == "collective-permute":
        # A start gives its operand, its result and two counters.
        return kind, arrays[0], 2
    if kind == "all-gather" and started:
        arrays = arrays[len(arrays) // 2 :]  # operands, then results
    size = sum(arrays)
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        # How TPUs write a reduce-scatter: a fusion of the sum with the choice of a part of it.
        return "reduce-scatter", size * (group - 1) // group, group
    share = {"all-reduce": 2 * (group - 1) / group, "reduce-scatter": group - 1}
    return kind, int(size * share.get(kind, (group - 1) / group)), group


def _group_size(line: str) -> int:
    """Devices of one of the `replica_groups`, of which XLA has three ways of writing."""
    groups = re.search(r"replica_groups=(.*?)(?:, \w+=|$)", line)
    if not groups:
        return 1
    written = groups[1]
    if written.startswith("mesh["):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", written))
        used = written[written.index("]") :]
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", used)
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if shape := re.match(r"\[\d+,(\d+)\]<=", written):
        return int(shape[1])
    return written.partition("}")[0].count(",") + 1
