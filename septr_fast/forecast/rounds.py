"""How often one program executes each instruction of a compiled kernel.

Machine code has loops but not how often they go round; Triton's own form of a kernel (TTGIR) has every loop's bounds,
as constants or in terms of the arguments. Both are read, and the loops of the one found in those of the other: in
order, level by level, but for short ones that the compiler has unrolled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from septr_fast.tuning.assembly.running_products import Instruction, instructions, target

_LOOP = re.compile(r"^( *)(?:%[\w:, ]+ = )?scf\.for %\w+ = (%?[\w-]+) to (%?[\w-]+) step (%?[\w-]+)")
_SCALAR = re.compile(r"^ *(%\w+) = (?:arith|tt)\.(\w+) (.*?)(?: \{.*?\})? : [iu]")
_NAMED_CONSTANT = re.compile(r"%c(-?\d+)_i\d+(?:_\d+)?$")
LONGEST_UNROLLED = 16
"""Rounds of a loop that may be unrolled whole."""

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divsi": lambda a, b: a // b,
    "divui": lambda a, b: a // b,
    "remsi": lambda a, b: a % b,
    "remui": lambda a, b: a % b,
    "minsi": min,
    "maxsi": max,
    "minui": min,
    "maxui": max,
}


@dataclass
class Loop:
    """A loop of either form.

    Attributes:
        rounds: how often it goes round each time; 0 where that is not known.
        span: the first and the last instruction, by address.
        inside: loops in it.
    """

    rounds: int = 0
    span: tuple[int, int] = (0, 0)
    inside: list[Loop] = field(default_factory=list)


def executed(machine_code: str, ttgir: str, arguments: Mapping[str, Any]) -> list[tuple[Instruction, float]]:
    """The instructions of a kernel, and how often each warp of one program executes them.

    Both ways of a branch are counted: the count is one from above where tiles are padded.

    Args:
        machine_code: as `disassembly.disassembled` gives it.
        ttgir: what Triton made the machine code of.
        arguments: of the launch, by name.

    Raises:
        ValueError: where the loops of the one are not found in the other.
    """
    code = instructions(machine_code)
    found = machine_loops(code)
    matched(found, written_loops(ttgir, arguments))
    return [(one, _times(one.address, found)) for one in code if one.name != "NOP"]


def _times(address: int, loops: Sequence[Loop]) -> float:
    for loop in loops:
        if loop.span[0] <= address <= loop.span[1]:
            return loop.rounds * _times(address, loop.inside)
    return 1.0


def machine_loops(code: Sequence[Instruction]) -> list[Loop]:
    """The loops of machine code, outermost first: a jump back closes one."""
    ends: dict[int, int] = {}
    for one in code:
        to = target(one) if one.name == "BRA" else -1
        if 0 <= to < one.address:
            ends[to] = max(ends.get(to, 0), one.address)
    outermost: list[Loop] = []
    for start in sorted(ends):
        loop, level = Loop(span=(start, ends[start])), outermost
        while level and level[-1].span[1] >= loop.span[1]:
            level = level[-1].inside
        level.append(loop)
    return outermost


def written_loops(ttgir: str, arguments: Mapping[str, Any]) -> list[Loop]:
    """The loops of a kernel as Triton has them, with their rounds in the first program."""
    values: dict[str, int] = {
        f"%{name}": value for name, value in arguments.items() if isinstance(value, int) and not isinstance(value, bool)
    }
    outermost: list[Loop] = []
    open_loops: list[tuple[int, Loop]] = []
    for line in ttgir.splitlines():
        scalar = _SCALAR.match(line)
        if scalar is not None:
            value = _value(scalar[2], [_read(text, values) for text in scalar[3].split(", ")])
            if value is not None:
                values[scalar[1]] = value
        start = _LOOP.match(line)
        if start is None:
            continue
        indent = len(start[1])
        while open_loops and open_loops[-1][0] >= indent:
            open_loops.pop()
        first, last, step = (_read(text, values) for text in start.groups()[1:])
        known = first is not None and last is not None and step
        loop = Loop(max(0, -(-(last - first) // step)) if known else 0)  # type: ignore[operator]
        (open_loops[-1][1].inside if open_loops else outermost).append(loop)
        open_loops.append((indent, loop))
    return outermost


def _value(operation: str, operands: Sequence[int | None]) -> int | None:
    """The value of an operation on whole numbers, None where it is not known; programs are the first."""
    if operation == "get_program_id":
        return 0
    if operation in ("constant", "extsi", "extui", "trunci"):
        return operands[0]
    if operation not in _OPERATIONS or len(operands) != 2:
        return None
    one, other = operands
    if one is None or other is None or (other == 0 and operation.startswith(("div", "rem"))):
        return None
    return _OPERATIONS[operation](one, other)


def _read(text: str, values: Mapping[str, int]) -> int | None:
    constant = _NAMED_CONSTANT.match(text)
    if constant is not None:
        return int(constant[1])
    word = text.split(" ")[0]
    return int(word) if re.fullmatch(r"-?\d+", word) else values.get(word)


def matched(found: Sequence[Loop], written: Sequence[Loop]) -> None:
    """Give the loops of machine code the rounds of those that they were made of.

    Raises:
        ValueError: where they do not fit, or a loop's rounds are not known.
    """
    written = list(written)
    for dropped in _unrolled(written, len(found)):
        kept = [loop for place, loop in enumerate(written) if place not in dropped]
        if all(len(loop.inside) >= len(one.inside) for one, loop in zip(found, kept, strict=True)):
            break
    else:
        raise ValueError(f"expected {len(found)} loops of machine code among {len(written)} of the kernel's")
    for one, loop in zip(found, kept, strict=True):
        if not loop.rounds:
            raise ValueError("expected a loop whose rounds are known")
        one.rounds = loop.rounds
        matched(one.inside, loop.inside)


def _unrolled(written: Sequence[Loop], left: int) -> list[tuple[int, ...]]:
    """Which loops may have been unrolled so that `left` are left, the shortest first."""
    short = [place for place, loop in enumerate(written) if 0 < loop.rounds <= LONGEST_UNROLLED and not loop.inside]
    choices = list(combinations(short, len(written) - left)) if left <= len(written) else []
    return sorted(choices, key=lambda places: sum(written[place].rounds for place in places))
