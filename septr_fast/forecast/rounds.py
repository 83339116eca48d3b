"""How often one program executes each instruction of a compiled kernel.

Machine code has loops but not how often they go round; Triton's own form of a kernel (TTGIR) has every loop's bounds,
as constants or in terms of the arguments. Both are read, and the loops of the one found in those of the other: in
order, level by level, but for short ones that the compiler has unrolled.

Loops of machine code are natural ones: what can reach a jump to where it must have come through. Where they lie says
less: a wait for another unit may stand behind the kernel's end and jump back from there.
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
WAITS = frozenset({"BRA", "SYNCS", "NANOSLEEP", "NOP", "YIELD", "WARPSYNC"})
"""What a loop consists of that does nothing but wait."""
ALLOCATES = "UTCATOMSWS"
"""Asks for tensor memory, in a loop of its own until another program has given back enough."""
JUMPS = ("BRA", "CALL")
"""Of these CALL also leaves loops: then nothing returns from there."""
COPIES = "LDGSTS"
"""From global to shared memory while the program goes on."""
ENDS = ("EXIT", "RET", "BRX", "JMX")
"""Instructions behind which nothing follows, unless they have a guard."""
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
        body: addresses of its instructions, of those inside too.
        inside: loops in it.
        ahead: rounds whose copies are begun before the loop; in as many of its last ones no copy is begun.
    """

    rounds: int = 0
    body: frozenset[int] = frozenset()
    inside: list[Loop] = field(default_factory=list)
    ahead: int = 0


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
    _begin_ahead([one.address for one in code if one.name == COPIES], found)
    return [(one, _times(one, found)) for one in code if one.name != "NOP"]


def _begin_ahead(copies: Sequence[int], loops: Sequence[Loop]) -> None:
    """Find the copies, by their addresses, that stand before the loop which goes on with them."""
    last = -1
    for loop in loops:
        inside = [address for address in copies if address in loop.body]
        each = sum(not _is_in(address, loop.inside) for address in inside)
        before = sum(last < address < min(loop.body) and not _is_in(address, loops) for address in copies)
        loop.ahead = min(before // each, loop.rounds) if each and before % each == 0 else 0
        last = max(loop.body)
        _begin_ahead(inside, loop.inside)


def _is_in(address: int, loops: Sequence[Loop]) -> bool:
    return any(address in loop.body for loop in loops)


def _times(one: Instruction, loops: Sequence[Loop]) -> float:
    for loop in loops:
        if one.address in loop.body:
            skipped = loop.ahead if one.name == COPIES and not _is_in(one.address, loop.inside) else 0
            return (loop.rounds - skipped) * _times(one, loop.inside)
    return 1.0


def machine_loops(code: Sequence[Instruction]) -> list[Loop]:
    """The loops of machine code, outermost first and in the order of their first instructions, but for mere waits."""
    blocks = _blocks(code)
    before: dict[int, set[int]] = {start: set() for start in blocks}
    for start, block in blocks.items():
        for follower in _followers(block, blocks):
            before[follower].add(start)
    dominating = _dominating(before, code[0].address if code else 0)
    bodies: dict[int, set[int]] = {}
    for header, entering in before.items():
        for end in entering:
            if header in dominating.get(end, ()):
                bodies.setdefault(header, set()).update(_reaching(end, header, before))
    names = {one.address: one.name for one in code}
    found = [frozenset(one.address for start in body for one in blocks[start]) for body in bodies.values()]
    loops = [Loop(body=body) for body in found if not _only_waits({names[address] for address in body})]
    outermost: list[Loop] = []
    for loop in sorted(loops, key=lambda loop: -len(loop.body)):
        level = outermost
        while holder := next((one for one in level if loop.body < one.body), None):
            level = holder.inside
        level.append(loop)
        level.sort(key=lambda one: min(one.body))
    return outermost


def _only_waits(names: set[str]) -> bool:
    """Whether a loop of instructions of these names waits for another unit or program: how long, no code says."""
    return names <= WAITS or (ALLOCATES in names and not names & {"UTCHMMA", "UTCQMMA"})


def _blocks(code: Sequence[Instruction]) -> dict[int, list[Instruction]]:
    """Instructions that are executed one after the other, by the address of the first."""
    targets = {target(one) for one in code if one.name in JUMPS}
    blocks: dict[int, list[Instruction]] = {}
    block: list[Instruction] = []
    for one in code:
        if not block or one.address in targets:
            block = blocks.setdefault(one.address, [])
        block.append(one)
        if one.name in (*JUMPS, *ENDS):
            block = []
    return blocks


def _followers(block: Sequence[Instruction], blocks: Mapping[int, list[Instruction]]) -> set[int]:
    """The blocks that may come next."""
    last, starts = block[-1], list(blocks)
    followers = {target(last)} & blocks.keys() if last.name in JUMPS else set()
    conditional = last.guard is not None or len(last.operands) > 1
    if conditional or (last.name != "BRA" and last.name not in ENDS):
        place = starts.index(block[0].address) + 1
        followers |= set(starts[place : place + 1])
    return followers


def _dominating(before: Mapping[int, set[int]], entry: int) -> dict[int, set[int]]:
    """Of every block that can be reached, those that every way to it leads through, itself among them."""
    reached, waiting = set[int](), [entry] if entry in before else []
    after: dict[int, list[int]] = {start: [] for start in before}
    for start, entering in before.items():
        for each in entering:
            after[each].append(start)
    while waiting:
        start = waiting.pop()
        if start not in reached:
            reached.add(start)
            waiting += after[start]
    found = {start: {start} if start == entry else set(reached) for start in sorted(reached)}
    changed = True
    while changed:
        changed = False
        for start in found:
            if start == entry:
                continue
            ways = [found[one] for one in before[start] if one in reached]
            now = {start}.union(set.intersection(*ways))
            changed |= now != found[start]
            found[start] = now
    return found


def _reaching(end: int, header: int, before: Mapping[int, set[int]]) -> set[int]:
    """The blocks from which `end` can be reached without passing `header`, and both of them."""
    found, waiting = {header}, [end]
    while waiting:
        start = waiting.pop()
        if start not in found:
            found.add(start)
            waiting += before[start]
    return found


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
