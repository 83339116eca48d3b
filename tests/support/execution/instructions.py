"""Instructions as functions of a machine, made once for a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from support.execution import arithmetic, tensor_cores, warpgroups
from support.execution.faults import FaultError
from support.execution.machine import Active, Machine, Step
from support.execution.memory import Array
from support.execution.parsing import Instruction, Program, address, vector

Read = Callable[[Machine], Array]
"""What an operand is, in every thread or in all alike."""
SHARED = "global_smem"
"""What the compiler calls the start of shared memory."""


def steps(program: Program) -> list[list[Step]]:
    """What the instructions of each block do; branches are for the machine.

    Raises:
        NotImplementedError: for an instruction that is not known, naming it.
    """
    return [[_step(instruction) for instruction in block if not instruction.ends_block] for block in program.blocks]


def _step(instruction: Instruction) -> Step:
    make = _OTHERS.get(instruction.name) or _OTHERS.get(".".join(instruction.parts[:2])) or _arithmetic
    try:
        step = make(instruction)
    except (KeyError, IndexError, ValueError, NotImplementedError) as error:
        raise NotImplementedError(f"line {instruction.line}: {instruction.text}: {error!r}") from error
    return step if instruction.predicate is None else _predicated(step, instruction)


def _predicated(step: Step, instruction: Instruction) -> Step:
    register, negated, line = instruction.predicate, instruction.negated, instruction.line
    assert register is not None

    def run(machine: Machine, active: Active) -> None:
        wanted = machine.every(machine.read(register, line)) != negated
        step(machine, wanted if active is None else wanted & active)

    return run


def _operand(text: str, kind: str, line: int) -> Read:
    """A register, a constant or what a thread knows of itself, seen as `kind`."""
    dtype = arithmetic.KINDS[kind]
    if text.startswith("%") and not text.startswith(("%tid", "%ctaid")):

        def of_register(machine: Machine) -> Array:
            value = machine.read(text, line)
            if value.dtype == dtype:
                return value
            return value.view(dtype) if value.dtype.itemsize == np.dtype(dtype).itemsize else value.astype(dtype)

        return of_register
    if text.startswith("%"):
        return lambda machine: machine.special[text].view(dtype)
    constant = _constant(text, dtype)
    return lambda machine: constant


def _constant(text: str, dtype: type[np.generic]) -> Any:
    if text == SHARED:
        return dtype(0)
    if dtype is np.bool_:
        return np.bool_(int(text, 0) != 0)
    size = 8 * np.dtype(dtype).itemsize
    value = int(text[2:], 16) if text.startswith(("0f", "0d")) else int(text, 0)
    return np.array(value & ((1 << size) - 1), f"u{size // 8}").view(dtype)[()]


def _stored(value: Array) -> Array:
    """As a register holds it: bits without a sign."""
    value = np.asarray(value)
    return value if value.dtype == np.bool_ else value.view(f"u{value.dtype.itemsize}")[()]


def _addresses(operand: str, kind: str, line: int) -> Callable[[Machine, Array], Array]:
    """Where each of some threads reads or writes."""
    register, offset = address(operand)
    base = _operand(register, kind, line)
    return lambda machine, threads: machine.every(base(machine))[threads].astype(np.int64) + offset


def _arithmetic(instruction: Instruction) -> Step:
    function, kinds = arithmetic.function(instruction.parts)
    to, *given = instruction.operands
    padded = [*kinds, *[kinds[-1]] * len(given)]
    reads = [_operand(text, kind, instruction.line) for text, kind in zip(given, padded, strict=False)]

    def run(machine: Machine, active: Active) -> None:
        machine.write(to, _stored(function(*[read(machine) for read in reads])), active)

    return run


def _move(instruction: Instruction) -> Step:
    to, given = instruction.operands
    kind, line = instruction.parts[-1], instruction.line
    if not (to.startswith("{") or given.startswith("{")):
        read = _operand(given, kind, line)
        return lambda machine, active: machine.write(to, _stored(read(machine)), active)
    size = arithmetic.bits(kind) // 2
    part = np.dtype(f"u{size // 8}")
    whole = np.dtype(f"u{size // 4}")
    if given.startswith("{"):
        low, high = (_operand(text, f"b{size}", line) for text in vector(given))

        def join(machine: Machine, active: Active) -> None:
            joined = low(machine).astype(whole) | (high(machine).astype(whole) << whole.type(size))
            machine.write(to, joined, active)

        return join
    read = _operand(given, kind, line)

    def divide(machine: Machine, active: Active) -> None:
        value = read(machine)
        for index, register in enumerate(vector(to)):
            if register != "_":
                machine.write(register, (value >> whole.type(index * size)).astype(part), active)

    return divide


def _load(instruction: Instruction) -> Step:
    to, given = instruction.operands[:2]
    kind, space, line = instruction.parts[-1], instruction.parts[1], instruction.line
    if space == "param":
        name = given.strip("[]")

        def load_parameter(machine: Machine, active: Active) -> None:
            value = np.asarray(machine.parameters[name])
            if kind == "s32" and to.startswith("%rd"):
                value = value.view(np.int32).astype(np.int64)
            machine.write(to, _stored(value), active)

        return load_parameter
    registers, width = vector(to), arithmetic.bits(kind) // 8
    where = _addresses(given, "u64" if space == "global" else "u32", line)

    def run(machine: Machine, active: Active) -> None:
        threads = machine.those(active)
        if not len(threads):
            return
        places = where(machine, threads)
        if space == "global":
            found = machine.memory.load(places, width, len(registers), line)
            machine.ask_global(places, threads, width * len(registers))
        else:
            found = machine.load_shared(places, threads, width, len(registers), line)
        for register, values in zip(registers, found, strict=True):
            machine.write(register, _of_all(machine, threads, values), active)

    return run


def _of_all(machine: Machine, threads: Array, values: Array) -> Array:
    """`values` of some threads as those of all, 0 for the others."""
    if len(threads) == machine.threads:
        return values
    spread = np.zeros(machine.threads, values.dtype)
    spread[threads] = values
    return spread


def _store(instruction: Instruction) -> Step:
    to, given = instruction.operands
    kind, space, line = instruction.parts[-1], instruction.parts[1], instruction.line
    width = arithmetic.bits(kind) // 8
    where = _addresses(to, "u64" if space == "global" else "u32", line)
    reads = [_operand(text, f"b{8 * width}", line) for text in vector(given)]

    def run(machine: Machine, active: Active) -> None:
        threads = machine.those(active)
        if not len(threads):
            return
        places = where(machine, threads)
        values = [machine.every(read(machine))[threads] for read in reads]
        if space == "global":
            machine.memory.store(places, values, width, line)
            machine.ask_global(places, threads, width * len(values))
        else:
            machine.store_shared(places, threads, np.stack(values, 1).view(np.uint16), line)

    return run


def _copy(instruction: Instruction) -> Step:
    parts, operands, line = instruction.parts, instruction.operands, instruction.line
    if parts[2] == "commit_group":
        return lambda machine, active: machine.commit_copies(active, line)
    if parts[2] == "wait_group":
        left = int(operands[0])
        return lambda machine, active: machine.wait_for_copies(active, left, line)
    to, start = _addresses(operands[0], "u32", line), _addresses(operands[1], "u64", line)
    size = int(operands[2], 0)
    given = _operand(operands[3], "u32", line) if len(operands) > 3 else None

    def run(machine: Machine, active: Active) -> None:
        threads = machine.those(active)
        if not len(threads):
            return
        sizes = np.full(len(threads), size) if given is None else machine.every(given(machine))[threads]
        if ((sizes != 0) & (sizes != size)).any():
            raise FaultError("a part of what is copied is filled with zeros", line)
        machine.copy(to(machine, threads), start(machine, threads), threads, size, sizes > 0, line)

    return run


def _shuffle(instruction: Instruction) -> Step:
    to, given, lane = instruction.operands[:3]
    value, other = _operand(given, "b32", instruction.line), _operand(lane, "b32", instruction.line)
    mode, line = instruction.parts[2], instruction.line

    def run(machine: Machine, active: Active) -> None:
        machine.write(to, tensor_cores.shuffle(machine, active, mode, value(machine), other(machine), line), active)

    return run


def _load_matrices(instruction: Instruction) -> Step:
    to, given = instruction.operands
    registers, line, transposed = vector(to), instruction.line, "trans" in instruction.parts
    where = _addresses(given, "u32", line)

    def run(machine: Machine, active: Active) -> None:
        places = where(machine, machine.thread)
        found = tensor_cores.load_matrices(machine, active, places, len(registers), transposed, line)
        for register, value in zip(registers, found, strict=True):
            machine.write(register, value, active)

    return run


def _store_matrices(instruction: Instruction) -> Step:
    to, given = instruction.operands
    reads = [_operand(text, "b32", instruction.line) for text in vector(given)]
    line, transposed, where = instruction.line, "trans" in instruction.parts, _addresses(to, "u32", instruction.line)

    def run(machine: Machine, active: Active) -> None:
        values = [read(machine) for read in reads]
        tensor_cores.store_matrices(machine, active, where(machine, machine.thread), values, transposed, line)

    return run


def _multiply(instruction: Instruction) -> Step:
    to, *given = map(vector, instruction.operands)
    reads = [[_operand(text, "b32", instruction.line) for text in operand] for operand in given]
    line, kind, depth = instruction.line, instruction.parts[-3], int(instruction.parts[3].partition("k")[2])

    def run(machine: Machine, active: Active) -> None:
        left, right, added = ([read(machine) for read in operand] for operand in reads)
        found = tensor_cores.multiply(machine, active, depth, kind, (left, right, added), line)
        for register, value in zip(to, found, strict=True):
            machine.write(register, value, active)

    return run


def _of_warpgroup(instruction: Instruction) -> Step:
    what, line, operands = instruction.parts[1], instruction.line, instruction.operands
    if what == "fence":
        return _allow
    if what == "commit_group":
        return lambda machine, active: warpgroups.commit(machine)
    if what == "wait_group":
        left = int(operands[0])
        return lambda machine, active: warpgroups.wait(machine, left)
    if instruction.parts[-1] not in tensor_cores.DECODED:
        raise NotImplementedError(f"operands in {instruction.parts[-1]}")
    shape = next(part for part in instruction.parts if part.startswith("m64n"))
    columns, _, depth = shape.removeprefix("m64n").partition("k")
    in_registers = operands[1].startswith("{")
    numbers = [int(text) for text in operands[4:]]
    flags = [bool(number) for number in numbers[2:]]
    by_columns = (False, flags[-1] if flags else False) if in_registers else (flags[0], flags[1])
    product = warpgroups.Multiplication(
        int(columns), int(depth), instruction.parts[-1], (numbers[0], numbers[1]), by_columns, vector(operands[0]), line
    )
    left = [_operand(text, "b32" if in_registers else "u64", line) for text in vector(operands[1])]
    right, adds = _operand(operands[2], "u64", line), _operand(operands[3], "pred", line)

    def run(machine: Machine, active: Active) -> None:
        a = [read(machine) for read in left]
        added = np.asarray(adds(machine))
        if added.any() != added.all():
            raise FaultError("threads of a warpgroup begin different products", line)
        warpgroups.begin(
            machine, active, product, a if in_registers else machine.every(a[0]), right(machine), bool(added.all())
        )

    return run


def _allow(machine: Machine, _: Active) -> None:
    machine.may_multiply = True


def _barrier(instruction: Instruction) -> Step:
    line = instruction.line
    if instruction.parts[1] == "warp":
        return lambda machine, active: None
    return lambda machine, active: machine.barrier(active, line)


def _fence(instruction: Instruction) -> Step:
    return lambda machine, active: machine.shared.fence()


_OTHERS: dict[str, Callable[[Instruction], Step]] = {
    "mov": _move,
    "ld": _load,
    "st": _store,
    "cp.async": _copy,
    "shfl": _shuffle,
    "ldmatrix": _load_matrices,
    "stmatrix": _store_matrices,
    "mma": _multiply,
    "wgmma": _of_warpgroup,
    "bar": _barrier,
    "fence": _fence,
}
"""What is no arithmetic, by the first parts of the name."""


def counted(program: Program, executed: Sequence[int]) -> dict[str, int]:
    """Instructions of warps by name, and of loads and stores by memory, from how many warps ran each block."""
    found: dict[str, int] = {}
    for block, warps in zip(program.blocks, executed, strict=True):
        for instruction in block:
            parts = instruction.parts[: 2 if instruction.name in ("ld", "st", "cp") else 1]
            name = ".".join(parts)
            found[name] = found.get(name, 0) + warps
    return found
