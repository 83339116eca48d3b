"""Instructions of a whole warp: values handed between lanes, matrices to and from shared memory, products.

A matrix of 8 by 8 values of two bytes lies in a warp with two values of a row in each lane: lane 4 r + c holds columns
2 c and 2 c + 1 of row r. Larger operands are such matrices side by side (PTX ISA, "Matrix Fragments for mma").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from support.execution.arithmetic import from_bfloat16, from_float16
from support.execution.machine import LANES, Active, Machine
from support.execution.memory import Array

LANE = np.arange(LANES)
ROW, COLUMN = LANE // 4, LANE % 4
QUARTERS = ((0, 0), (0, 1), (8, 0), (8, 1))
"""Row and column, beside those of the lane, of the four values of an accumulator."""


DECODED: dict[str, Callable[[Array], Array]] = {"bf16": from_bfloat16, "f16": from_float16}
"""float32 of operands, by the names of types."""


def halves(value: Array, kind: str) -> tuple[Array, Array]:
    """Both values of two bytes of a register, in float32."""
    decode = DECODED[kind]
    return decode(value & np.uint32(0xFFFF)), decode(value >> np.uint32(16))


def shuffle(machine: Machine, active: Active, mode: str, value: Array, lane: Array, line: int) -> Array:
    """The value that another lane holds: the one whose number differs by bits, or that of this number."""
    machine.whole_warps(active, line)
    values, lanes = (machine.every(x).reshape(-1, LANES) for x in (value, lane))
    source = {"bfly": LANE ^ lanes, "idx": lanes & 31, "up": np.maximum(LANE - lanes.astype(np.int64), 0)}[mode]
    return np.take_along_axis(values, source.astype(np.int64), 1).reshape(-1)


def load_matrices(
    machine: Machine, active: Active, addresses: Array, count: int, transposed: bool, line: int
) -> list[Array]:
    """`count` matrices, one register each; lanes 8 i to 8 i + 7 name the rows of matrix i."""
    warps = machine.whole_warps(active, line)
    start, threads = _rows(machine, warps, addresses, count, line)
    places = start[:, None] + 2 * np.arange(8)
    machine.shared.read(places, machine.warp[threads], machine.of_program[threads], line)
    matrices = machine.shared.views[2][places >> 1].reshape(len(warps), count, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    low, high = (matrices[:, :, ROW, 2 * COLUMN + odd].astype(np.uint32) for odd in (0, 1))
    return [_spread(machine, warps, (low | high << np.uint32(16))[:, index]) for index in range(count)]


def store_matrices(
    machine: Machine, active: Active, addresses: Array, values: Sequence[Array], transposed: bool, line: int
) -> None:
    """The opposite of `load_matrices`."""
    warps = machine.whole_warps(active, line)
    start, threads = _rows(machine, warps, addresses, len(values), line)
    matrices = np.empty((len(warps), len(values), 8, 8), np.uint16)
    for index, value in enumerate(values):
        of_warps = machine.every(value).reshape(-1, LANES)[warps]
        matrices[:, index, ROW, 2 * COLUMN] = of_warps & np.uint32(0xFFFF)
        matrices[:, index, ROW, 2 * COLUMN + 1] = of_warps >> np.uint32(16)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    places = start[:, None] + 2 * np.arange(8)
    machine.shared.write(places, matrices.reshape(-1, 8), machine.warp[threads], machine.of_program[threads], line)


def multiply(
    machine: Machine,
    active: Active,
    depth: int,
    kind: str,
    operands: tuple[Sequence[Array], Sequence[Array], Sequence[Array]],
    line: int,
) -> list[Array]:
    """`a b + c` of 16 x depth, depth x 8 and 16 x 8 values, sums in float32."""
    machine.whole_warps(active, line)
    left, right, added = ([machine.every(x).reshape(-1, LANES) for x in operand] for operand in operands)
    warps = machine.threads // LANES
    b = np.empty((warps, depth, 8), np.float32)
    a = fragment(left, kind)
    for index, value in enumerate(right):
        for odd, half in enumerate(halves(value, kind)):
            b[:, 2 * COLUMN + odd + 8 * index, ROW] = half
    c = np.empty((warps, 16, 8), np.float32)
    for (row, column), value in zip(QUARTERS, added, strict=True):
        c[:, ROW + row, 2 * COLUMN + column] = value.view(np.float32)
    c += a @ b
    return [c[:, ROW + row, 2 * COLUMN + column].view(np.uint32).reshape(-1) for row, column in QUARTERS]


def fragment(values: Sequence[Array], kind: str) -> Array:
    """16 rows of columns for every two registers `(warps, lanes)`, in float32."""
    matrix = np.empty((len(values[0]), 16, 4 * len(values)), np.float32)
    for index, value in enumerate(values):
        for odd, half in enumerate(halves(value, kind)):
            matrix[:, ROW + 8 * (index % 2), 2 * COLUMN + odd + 8 * (index // 2)] = half
    return matrix


def _rows(machine: Machine, warps: Array, addresses: Array, count: int, line: int) -> tuple[Array, Array]:
    """The first byte of each row of `count` matrices, and the lane that names it."""
    threads = (LANES * warps[:, None] + np.arange(8 * count)).reshape(-1)
    return machine.shared_places(machine.every(addresses)[threads].astype(np.int64), threads, 16, line), threads


def _spread(machine: Machine, warps: Array, values: Array) -> Array:
    """`values` `(warps, lanes)` of some warps as those of all threads, 0 for the others."""
    if len(warps) * LANES == machine.threads:
        return values.reshape(-1)
    spread = np.zeros((machine.threads // LANES, LANES), values.dtype)
    spread[warps] = values
    return spread.reshape(-1)
