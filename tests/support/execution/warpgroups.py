"""Products of four warps on Hopper's tensor cores, which read shared memory by themselves and run on while others work.

What names a matrix in shared memory is a descriptor: its first byte, two strides between its parts and how its rows
are swizzled (PTX ISA, "Matrix Descriptor Format"). Parts are of eight rows of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from support.execution.faults import FaultError
from support.execution.machine import Active, Machine, Products, Unfinished
from support.execution.memory import Array
from support.execution.tensor_cores import COLUMN, DECODED, QUARTERS, ROW, fragment

GROUP = 128
"""Threads of a warpgroup."""
SIZE = 2
"""Bytes of a value of an operand."""
SWIZZLED = {1: 128, 2: 64, 3: 32}
"""Bytes of a row by the code of its swizzle; 0 stands for none."""


@dataclass(frozen=True)
class Multiplication:
    """One instruction.

    Attributes:
        columns: of what comes out, whose rows are 64.
        depth: values that are summed up.
        kind: of the operands.
        signs: that the operands are multiplied with.
        by_columns: whether the matrices in shared memory lie column by column.
        registers: of what comes out.
        line: of the kernel's body.
    """

    columns: int
    depth: int
    kind: str
    signs: tuple[int, int]
    by_columns: tuple[bool, bool]
    registers: Sequence[str]
    line: int


def begin(
    machine: Machine, active: Active, what: Multiplication, left: Array | Sequence[Array], right: Array, adds: bool
) -> None:
    """Begin a product; its result is not to be used before `wait`.

    Args:
        machine: that runs.
        active: threads that take part.
        what: is multiplied.
        left: a descriptor, or registers.
        right: a descriptor.
        adds: whether the product is added to what the registers hold.
    """
    if active is not None:
        raise FaultError("a warpgroup multiplies without some of its threads", what.line)
    if not machine.may_multiply:
        raise FaultError("a product begins without wgmma.fence", what.line)
    groups = machine.threads // GROUP
    right_places = _places(machine, right, what, right_side=True)
    borrowed = [right_places]
    b = _values(machine, right_places, what)
    if isinstance(left, np.ndarray):
        left_places = _places(machine, left, what, right_side=False)
        borrowed.append(left_places)
        a = _values(machine, left_places, what)
    else:
        a = fragment([machine.every(x).reshape(-1, 32) for x in left], what.kind).reshape(groups, 64, what.depth)
    product = (a * np.float32(what.signs[0])) @ (b * np.float32(what.signs[1])).swapaxes(1, 2)
    rows = (16 * np.arange(4)[:, None] + ROW).reshape(-1)
    columns = np.tile(2 * COLUMN, 4)
    for index, register in enumerate(what.registers):
        row, column = QUARTERS[index % 4]
        value = product[:, rows + row, 8 * (index // 4) + columns + column].reshape(-1)
        if adds:
            value = value + _held(machine, register, what.line).view(np.float32)
        machine.registers[register] = Unfinished(value.view(np.uint32))
    for places in borrowed:
        machine.shared.lend(*_shares(machine, places), what.line)
    machine.begun.append(Products(what.registers, borrowed))


def commit(machine: Machine) -> None:
    """What has begun since is one group."""
    machine.committed.append(machine.begun)
    machine.begun = []


def wait(machine: Machine, left: int) -> None:
    """Wait until at most `left` groups are running."""
    done = max(0, len(machine.committed) - left)
    for products in (products for group in machine.committed[:done] for products in group):
        for register in products.registers:
            value = machine.registers[register]
            machine.registers[register] = value.value if isinstance(value, Unfinished) else value
        for places in products.places:
            machine.shared.give_back(*_shares(machine, places))
    machine.committed = machine.committed[done:]
    for register in (name for group in machine.committed for products in group for name in products.registers):
        value = machine.registers[register]
        machine.registers[register] = value if isinstance(value, Unfinished) else Unfinished(value)
    machine.may_multiply = False


def _held(machine: Machine, register: str, line: int) -> Array:
    """What a register holds, for the tensor cores, whose products follow one another."""
    value = machine.registers.get(register)
    if value is None:
        raise FaultError(f"{register} is added to before it is written", line)
    return machine.every(value.value if isinstance(value, Unfinished) else value)


def _shares(machine: Machine, places: Array) -> tuple[Array, Array, Array]:
    """`places` `(groups, rows, depth)` by the four warps of each group, and the warp and the program of each."""
    first = np.arange(machine.threads // GROUP * 4) * 32
    return np.repeat(places.reshape(len(places), -1), 4, axis=0), machine.warp[first], machine.of_program[first]


def _values(machine: Machine, places: Array, what: Multiplication) -> Array:
    """float32 of the operand at `places`."""
    return DECODED[what.kind](machine.shared.views[SIZE][places // SIZE])


def _places(machine: Machine, descriptor: Array, what: Multiplication, *, right_side: bool) -> Array:
    """Bytes of shared memory where the values of an operand `(groups, rows, depth)` begin."""
    rows, by_columns, line = what.columns if right_side else 64, what.by_columns[right_side], what.line
    depth, size = what.depth, SIZE
    given = machine.every(descriptor).astype(np.uint64).reshape(-1, GROUP)
    if (given != given[:, :1]).any():
        raise FaultError("threads of a warpgroup name different matrices", line)

    def field(first: int, size: int) -> Array:
        found = (given[:, 0] >> np.uint64(first)) & np.uint64((1 << size) - 1)
        return found.astype(np.int64)[:, None, None]

    start, leading, stride = 16 * field(0, 14), 16 * field(16, 14), 16 * field(32, 14)
    if field(49, 3).any():
        raise NotImplementedError("a matrix that does not begin with a pattern of its swizzle")
    (code,) = set(field(62, 2).ravel().tolist())
    row, column = np.arange(rows)[:, None], np.arange(depth)[None, :]
    if code == 0:
        if by_columns:
            raise NotImplementedError("a matrix column by column without a swizzle")
        across = 16 // size
        offset = row // 8 * stride + row % 8 * 16 + column // across * leading + column % across * size
    elif by_columns:
        width = SWIZZLED[code]
        across = width // 2
        offset = row // across * leading + column // 8 * stride + column % 8 * width + row % across * 2
    else:
        offset = row // 8 * stride + row % 8 * SWIZZLED[code] + column * size
    places = start + offset
    if code:
        places = places ^ (((places >> 7) & (SWIZZLED[code] // 16 - 1)) << 4)
    programs = machine.of_program[::GROUP][:, None, None]
    return machine.shared.places(programs, places, size, size, line)
