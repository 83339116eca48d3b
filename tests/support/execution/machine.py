"""Threads that run a kernel: registers, branches, memory, barriers and copies that run by themselves.

All threads of several programs take each instruction at the same time. Where a branch divides them, one part goes on
to the place where both ways come together, then the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from support.execution.faults import FaultError
from support.execution.memory import UNSIGNED, Array, GlobalMemory, SharedMemory
from support.execution.parsing import Instruction, Program
from support.execution.traffic import Traffic

LANES = 32
MOST_BLOCKS = 10**5
"""That a kernel runs before it is taken to run for ever."""

Active = Array | None
"""Which threads take part; None for all."""
Step = Callable[["Machine", Active], None]
"""What an instruction does."""


class Copy(NamedTuple):
    """A copy from global to shared memory that has begun: who, to which bytes, and what arrives."""

    threads: Array
    places: Array
    values: Array


class Products(NamedTuple):
    """Products that tensor cores have begun: the registers that they write, and what they read in shared memory."""

    registers: Sequence[str]
    places: list[Array]


@dataclass(frozen=True)
class Unfinished:
    """A register that tensor cores may still write: of no use to any instruction but theirs."""

    value: Array


class Machine:
    """Runs some of a kernel's programs, all together.

    Args:
        program: the kernel.
        steps: what its instructions do, by block.
        shared: bytes of shared memory of a program.
        memory: of the tensors.
        values: of the parameters.
        programs: numbers of those that run.
        traffic: to count requests in; None where nobody wants to know.
    """

    def __init__(
        self,
        program: Program,
        steps: Sequence[Sequence[Step]],
        shared: int,
        memory: GlobalMemory,
        values: Sequence[float],
        programs: Sequence[int],
        traffic: Traffic | None = None,
    ) -> None:
        if len(values) != len(program.parameters):
            raise ValueError(f"values: expected {len(program.parameters)}, got {len(values)}")
        self.program, self.memory, self._steps, self.traffic = program, memory, steps, traffic
        count, threads = len(programs), program.threads
        self.threads = count * threads
        self.thread = np.arange(self.threads)
        self.of_program = np.repeat(np.arange(count), threads)
        self.warp = self.thread % threads // LANES
        self.special = {
            "%tid.x": (self.thread % threads).astype(np.uint32),
            "%ctaid.x": np.repeat(np.asarray(programs, np.uint32), threads),
        }
        self.shared = SharedMemory(count, shared)
        self.parameters = {
            name: parameter(kind, value) for (kind, name), value in zip(program.parameters, values, strict=True)
        }
        self.registers: dict[str, Any] = {}
        self.executed: Counter[int] = Counter()
        """Warps that ran each block."""
        self._blocks = 0
        self._open: list[list[Copy]] = [[] for _ in range(count)]
        self._copies: list[list[list[Copy]]] = [[] for _ in range(count)]
        self.begun: list[Products] = []
        self.committed: list[list[Products]] = []
        self.may_multiply = False

    def run(self) -> None:
        """Run to the end.

        Raises:
            FaultError: at the first thing that must not be.
        """
        with np.errstate(all="ignore"):
            self._run(0, len(self.program.blocks), None)

    def _run(self, block: int, end: int, active: Active) -> None:
        """From `block` to `end`."""
        while block != end and block < len(self.program.blocks):
            for step in self._steps[block]:
                step(self, active)
            self.executed[block] += (
                self.threads // LANES if active is None else int(active.reshape(-1, LANES).any(1).sum())
            )
            self._blocks += 1
            if self._blocks > MOST_BLOCKS:
                raise FaultError("runs for ever", 0)
            last = self.program.blocks[block][-1] if self.program.blocks[block] else None
            block = self._next(block, last, active)

    def _next(self, block: int, last: Instruction | None, active: Active) -> int:
        """Where all go; those that a branch divides have gone to where they meet."""
        if last is None or not last.ends_block:
            return block + 1
        if last.name == "ret":
            return len(self.program.blocks)
        if last.predicate is None:
            return self.program.target(last)
        taken = self.every(self.registers[last.predicate]) != last.negated
        going = taken if active is None else taken & active
        if (going == (True if active is None else active)).all():
            return self.program.target(last)
        if not going.any():
            return block + 1
        meeting = self.program.joins[block]
        self._run(block + 1, meeting, ~going if active is None else active & ~going)
        self._run(self.program.target(last), meeting, going)
        return meeting

    def every(self, value: Array) -> Array:
        """A value of every thread."""
        return np.broadcast_to(value, (self.threads,))

    def those(self, active: Active) -> Array:
        """The numbers of the threads that take part."""
        return self.thread if active is None else np.flatnonzero(active)

    def write(self, register: str, value: Array, active: Active) -> None:
        """Give a register of the threads that take part a value of every thread."""
        old = self.registers.get(register)
        if isinstance(old, Unfinished):
            raise FaultError(f"{register} is written while tensor cores may still write it", 0)
        if active is not None:
            value = np.where(active, value, np.zeros((), np.asarray(value).dtype) if old is None else old)
        self.registers[register] = value

    def read(self, register: str, line: int) -> Array:
        """The value of a register of every thread, or one for all."""
        try:
            value = self.registers[register]
        except KeyError:
            raise FaultError(f"{register} is read before it is written", line) from None
        if isinstance(value, Unfinished):
            raise FaultError(f"{register} is read while tensor cores may still write it", line)
        return value

    def whole_warps(self, active: Active, line: int) -> Array:
        """The numbers of the warps that take part, no thread of them missing."""
        if active is None:
            return np.arange(self.threads // LANES)
        of_warps = active.reshape(-1, LANES)
        if (of_warps.any(1) != of_warps.all(1)).any():
            raise FaultError("a warp takes part without some of its threads", line)
        return np.flatnonzero(of_warps.all(1))

    def whole_programs(self, active: Active, line: int) -> Array:
        """The numbers of the programs that take part, no thread of them missing."""
        if active is None:
            return np.arange(len(self._open))
        of_programs = active.reshape(len(self._open), -1)
        if (of_programs.any(1) != of_programs.all(1)).any():
            raise FaultError("a program takes part without some of its threads", line)
        return np.flatnonzero(of_programs.all(1))

    def barrier(self, active: Active, line: int) -> None:
        """All threads of a program wait for one another."""
        self.shared.epoch[self.whole_programs(active, line)] += 1

    # Memory.

    def ask_global(self, places: Array, threads: Array, size: int) -> None:
        """Count a request of `threads` for `size` bytes at each of `places`."""
        if self.traffic is not None and len(threads):
            self.traffic.whole(places, threads, size)

    def shared_places(self, addresses: Array, threads: Array, size: int, line: int) -> Array:
        """Bytes of shared memory that `threads` name by their `addresses`, aligned to `size`."""
        places = self.shared.places(self.of_program[threads], addresses, size, size, line)
        if self.traffic is not None:
            self.traffic.shared(places, threads, size)
        return places

    def load_shared(self, addresses: Array, threads: Array, width: int, count: int, line: int) -> list[Array]:
        """`count` values of `width` bytes for each of `threads`."""
        start = self.shared_places(addresses, threads, width * count, line)
        self.shared.read(start[:, None] + 2 * np.arange(width * count // 2), *self._owners(threads), line)
        return [self.shared.views[width][start // width + index] for index in range(count)]

    def store_shared(self, addresses: Array, threads: Array, values: Array, line: int) -> None:
        """`values` `(threads, count)` of two bytes, side by side."""
        start = self.shared_places(addresses, threads, 2 * values.shape[1], line)
        self.shared.write(start[:, None] + 2 * np.arange(values.shape[1]), values, *self._owners(threads), line)

    def _owners(self, threads: Array) -> tuple[Array, Array]:
        """The warp and the program of each of `threads`."""
        return self.warp[threads], self.of_program[threads]

    # Copies that run by themselves.

    def copy(self, to: Array, start: Array, threads: Array, size: int, filled: Array, line: int) -> None:
        """Begin to copy `size` bytes from global to shared memory; zeros where not `filled`, and nothing is read."""
        places = self.shared_places(to, threads, size, line)[:, None] + np.arange(size)
        values = np.zeros((len(threads), size), np.uint8)
        values[filled] = self.memory.raw(start[filled], size, line)
        self.ask_global(start[filled], threads[filled], size)
        self.shared.begin_copy(places, *self._owners(threads), line)
        for program in np.unique(self.of_program[threads]):
            own = self.of_program[threads] == program
            self._open[program].append(Copy(threads[own], places[own], values[own]))

    def commit_copies(self, active: Active, line: int) -> None:
        """What has begun since is one group."""
        for program in self.whole_programs(active, line):
            self._copies[program].append(self._open[program])
            self._open[program] = []

    def wait_for_copies(self, active: Active, left: int, line: int) -> None:
        """Wait until at most `left` groups are on their way."""
        for program in self.whole_programs(active, line):
            groups = self._copies[program]
            done, self._copies[program] = groups[: max(0, len(groups) - left)], groups[max(0, len(groups) - left) :]
            for copied in (copy for group in done for copy in group):
                self.shared.land(copied.places, copied.values, *self._owners(copied.threads))


def parameter(kind: str, value: float) -> Array:
    """A parameter as the bits of a register."""
    if kind[0] == "f":
        return np.float32(value).view(np.uint32)
    size = int(kind[1:])
    dtype = UNSIGNED[max(2, size // 8)]
    return np.asarray(int(value) & ((1 << size) - 1)).astype(dtype)[()]
