"""Two scans of machine code for products that Hopper's tensor cores compute by themselves, while the threads go on.

Such a product (`HGMMA`) reads its left operand from registers or shared memory, its right one from shared memory, and
writes registers, until a wait (`WARPGROUP.DEPBAR`) says that it is done. Assemblers are reported to have given those
registers to others too early (triton#9433, triton#11781) and to have moved waits (triton#11047); what was compiled is
therefore read, instruction by instruction, along every way through the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*)(\S*)\s*([^;]*);")
_SCHEDULE = re.compile(r"\s+[&?]\w.*")
"""What newer architectures' instructions are followed by."""
_TARGET = re.compile(r"0x([0-9a-f]+)$")
_REGISTER = re.compile(r"(?<![A-Za-z])R(\d+)")
_PREDICATE = re.compile(r"!?U?P\w+$")
_SHAPE = re.compile(r"\.64x(\d+)x\d+\.(F32|F16)")
_LEFT = 4
"""Registers of a left operand: 64 rows by 32 bytes over 128 threads."""
_STORES = ("STS", "STSM", "LDGSTS")
"""What writes shared memory."""
_NO_RESULT = ("ST", "STG", "STS", "STL", "STSM", "LDGSTS", "ISETP", "FSETP", "PLOP3", "BRA", "EXIT", "R2UR", "R2P")
"""Instructions whose first register is read."""
_MOST_GROUPS = 4
"""That are told apart; older ones are waited for together."""


class Instruction(NamedTuple):
    """One line: its address, guard, operation, suffixes and operands."""

    address: int
    guard: str | None
    name: str
    suffixes: str
    operands: list[str]
    text: str


class Group(NamedTuple):
    """Products that are waited for together: registers, as bits, that they read and that they write."""

    reads: int
    writes: int


@dataclass(frozen=True)
class Running:
    """What may be under way at one place.

    Attributes:
        groups: from the oldest to the newest; the last is not closed yet.
        waited: whether the products were waited for, and no barrier came since.
    """

    groups: tuple[Group, ...] = (Group(0, 0),)
    waited: bool = False

    @property
    def any(self) -> bool:
        """Whether a product may be running."""
        return any(group.writes for group in self.groups)

    def joined(self, other: Running) -> Running:
        """What may be under way where two ways meet."""
        length = max(len(self.groups), len(other.groups))
        nothing = (Group(0, 0),)
        one, two = (nothing * (length - len(groups)) + groups for groups in (self.groups, other.groups))
        groups = tuple(Group(a.reads | b.reads, a.writes | b.writes) for a, b in zip(one, two, strict=True))
        return Running(groups, self.waited or other.waited)


@dataclass
class Found:
    """What the scans find.

    Attributes:
        touched: instructions that write a register which a running product reads or writes, or read one that it writes.
        stores: instructions that write shared memory while a product may be running, or after it was waited for by one
            warp and before a barrier: right where they write another part of it than the product reads.
    """

    touched: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)


def scan(machine_code: str) -> Found:
    """Read one kernel's machine code, as `disassembly.disassembled` gives it."""
    blocks, following = _blocks(machine_code)
    before: dict[int, Running] = {0: Running()} if blocks else {}
    due = [0] if blocks else []
    while due:
        block = due.pop()
        after = _through(blocks[block], before[block], Found())
        for target in following[block]:
            joined = before[target].joined(after) if target in before else after
            if joined != before.get(target):
                before[target] = joined
                due.append(target)
    found = Found()
    for block, running in before.items():
        _through(blocks[block], running, found)
    return found


def _through(block: list[Instruction], running: Running, found: Found) -> Running:
    """What is under way behind a block; adds to `found`."""
    for one in block:
        if one.name == "HGMMA":
            running = _with_product(one, running, found)
        elif one.name == "WARPGROUP" and one.suffixes.startswith(".DEPBAR"):
            left = int(one.operands[-1], 16)
            kept = running.groups[-left - 1 :] if left else running.groups[-1:]
            running = Running(kept, running.waited or len(kept) < len(running.groups))
        elif one.name == "BAR":
            running = Running(running.groups, False)
        else:
            if running.any and _touches(one, running.groups):
                found.touched.append(one.text)
            if one.name in _STORES and (running.any or running.waited):
                found.stores.append(one.text)
    return running


def _with_product(one: Instruction, running: Running, found: Found) -> Running:
    """A product more in the newest group, which `gsb0` closes."""
    shape = _SHAPE.search(one.suffixes)
    if shape is None:
        raise ValueError(f"no size of a product: {one.text}")
    count = int(shape[1]) // (2 if shape[2] == "F32" else 4)
    writes = _bits(one.operands[0], count)
    reads = _bits(one.operands[1], _LEFT)
    written = 0
    for group in running.groups:
        written |= group.writes
    added = next((operand for operand in one.operands[2:] if _REGISTER.match(operand)), None)
    chained = added is None or added.split(".")[0] == one.operands[0].split(".")[0]
    if reads & written or not chained:
        found.touched.append(one.text)
    newest = Group(running.groups[-1].reads | reads, running.groups[-1].writes | writes)
    groups = (*running.groups[:-1], newest)
    if "gsb0" in one.operands:
        groups = (*groups, Group(0, 0))
    while len(groups) > _MOST_GROUPS:
        oldest = Group(groups[0].reads | groups[1].reads, groups[0].writes | groups[1].writes)
        groups = (oldest, *groups[2:])
    return Running(groups, running.waited)


def _touches(one: Instruction, groups: tuple[Group, ...]) -> bool:
    reads, writes = 0, 0
    for group in groups:
        reads |= group.reads
        writes |= group.writes
    written, read = _registers(one)
    return bool(written & (reads | writes) or read & writes)


def _registers(one: Instruction) -> tuple[int, int]:
    """The registers, as bits, that an instruction writes, and those that it reads."""
    operands = one.operands
    if one.name not in _NO_RESULT and len(operands) > 1 and _PREDICATE.match(operands[0]):
        operands = operands[1:]
    width, sources = _width(one), len(operands) - 1
    has_result = one.name not in _NO_RESULT and bool(operands) and bool(_REGISTER.match(operands[0]))
    written = _bits(operands[0], width) if has_result else 0
    read = 0
    for place, operand in enumerate(operands[1:] if has_result else operands):
        stored = one.name in _NO_RESULT and place > 0 and _REGISTER.match(operand)
        added = "WIDE" in one.suffixes and place == sources - 1
        whole = width if stored else 2 if added or ".64" in operand else 1
        for number in _REGISTER.findall(operand):
            read |= _range(int(number), whole)
    return written, read


def _width(one: Instruction) -> int:
    """Registers of the value that an instruction moves or makes."""
    matrices = re.search(r"\.M88\.(\d)", one.suffixes)
    if one.name in ("LDSM", "STSM"):
        return int(matrices[1]) if matrices else 1
    if one.name == "HMMA":
        return 4
    if ".128" in one.suffixes:
        return 4
    pair = ".64" in one.suffixes or "WIDE" in one.suffixes or (one.name == "CS2R" and ".32" not in one.suffixes)
    return 2 if pair else 1


def _bits(operand: str, count: int) -> int:
    """Registers from the one that an operand names; none for zero and for shared memory."""
    named = _REGISTER.match(operand)
    return _range(int(named[1]), count) if named else 0


def _range(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


def _blocks(machine_code: str) -> tuple[list[list[Instruction]], list[list[int]]]:
    """The instructions from one place where ways part or meet to the next, and which blocks follow on each."""
    code = instructions(machine_code)
    targets = {target(one) for one in code if one.name == "BRA"}
    blocks: list[list[Instruction]] = []
    for before, one in zip((None, *code), code, strict=False):
        if before is None or before.name in ("BRA", "EXIT") or one.address in targets:
            blocks.append([])
        blocks[-1].append(one)
    places = {block[0].address: place for place, block in enumerate(blocks)}
    return blocks, [list(_following(place, block[-1], places)) for place, block in enumerate(blocks)]


def _following(place: int, last: Instruction, places: dict[int, int]) -> Iterator[int]:
    if last.name == "BRA":
        to = target(last)
        if to not in places:
            raise ValueError(f"no place to go to: {last.text}")
        yield places[to]
    if (last.name not in ("BRA", "EXIT") or last.guard is not None) and place + 1 < len(places):
        yield place + 1


def instructions(machine_code: str) -> list[Instruction]:
    """The instructions of machine code, as `disassembly.disassembled` gives it."""
    return [one for one in map(_instruction, machine_code.splitlines()) if one is not None]


def target(branch: Instruction) -> int:
    """The address that a branch goes to; -1 where none can be read."""
    found = _TARGET.search(branch.operands[-1]) if branch.operands else None
    return int(found[1], 16) if found else -1


def _instruction(line: str) -> Instruction | None:
    parts = _LINE.match(line)
    if parts is None:
        return None
    address, guard, name, suffixes, operands = parts.groups()
    operands = _SCHEDULE.sub("", operands)
    named = [operand.strip() for operand in operands.split(",")] if operands.strip() else []
    return Instruction(int(address, 16), guard, name, suffixes, named, line.split("*/", 1)[1].strip())
