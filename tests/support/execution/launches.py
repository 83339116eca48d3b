"""Launches of the project's kernels, compiled for a GPU that is not here and executed on the memory of CPU tensors."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Launch
from support.execution.instructions import counted, steps
from support.execution.machine import Machine, Step
from support.execution.memory import GlobalMemory
from support.execution.parsing import Program, parse
from support.execution.traffic import Traffic
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend

from septr_fast.passes import backend
from septr_fast.tuning import compiled

_NO_CODE = re.compile(r"^\s*(?:\.target|\.loc|\.file|//).*$|//.*$", re.MULTILINE)
"""What in a module is no instruction: the architecture's name, and places in the source."""
TOGETHER = 16
"""Programs that run at a time."""
Change = Callable[[str, str], str]
"""Makes other PTX of that of the kernel called so."""


def unchanged(name: str, ptx: str) -> str:
    """The PTX as the compiler made it."""
    return ptx


def build(described: Launch) -> str:
    """A kernel with its configuration: what a row of the tables becomes for some sizes."""
    config = described.config
    tiles = " ".join(f"{name}={size}" for name, size in sorted(config.tiles.items()))
    return f"{described.name} {tiles} warps={config.warps} stages={config.stages}"


_built: dict[str, Any] = {}
"""What Triton made of each launch of this process, by `compiled.identity`: to be looked at, executed, and changed."""


@dataclass(frozen=True)
class Executable:
    """A compiled kernel.

    Attributes:
        program: read from its PTX.
        steps: what its instructions do.
        shared: bytes of shared memory of a program.
        signature: types of the kernel's arguments by name.
    """

    program: Program
    steps: list[list[Step]]
    shared: int
    signature: Mapping[str, Any]


@dataclass
class Execution:
    """What was executed.

    Attributes:
        arch: compute capability that kernels are compiled for.
        change: of the PTX of each.
        programs: how many of each kernel ran, by name.
        instructions: of warps, by kernel and name.
        traffic: of each kernel.
        builds: that ran, as `build` names them.
        code: hashes of their instructions, in the order in which they were first launched.
        compile_only: whether nothing runs, but is compiled.
    """

    arch: int
    change: Change = unchanged
    compile_only: bool = False
    programs: Counter[str] = field(default_factory=Counter)
    instructions: dict[str, Counter[str]] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    builds: set[str] = field(default_factory=set)
    code: dict[str, None] = field(default_factory=dict)
    _kept: dict[str, Executable] = field(default_factory=dict)

    def run(self, described: Launch) -> None:
        """Execute a launch.

        Raises:
            FaultError: for the first thing that it must not do.
        """
        if described.programs == 0:
            return
        self.builds.add(build(described))
        executable = self.compile(described)
        if executable is None:
            return
        traffic = self.traffic.setdefault(described.name, Traffic())
        memory, values = _memory(described), _values(described, executable.signature)
        counts = self.instructions.setdefault(described.name, Counter())
        for first in range(0, described.programs, TOGETHER):
            programs = range(first, min(first + TOGETHER, described.programs))
            machine = Machine(
                executable.program, executable.steps, executable.shared, memory, values, programs, traffic
            )
            machine.run()
            blocks = range(len(executable.program.blocks))
            counts.update(counted(executable.program, [machine.executed[block] for block in blocks]))
        self.programs[described.name] += described.programs

    def compile(self, described: Launch) -> Executable | None:
        """The compiled kernel of a launch; None where nothing is to run."""
        key = compiled.identity(described, self.arch)
        if key not in self._kept:
            if key not in _built:
                with compiled.driver(), _not_assembling():
                    _built[key] = compiled._warm_up(described, self.arch, "execution")
            kernel = _built[key]
            ptx = self.change(described.name, kernel.asm["ptx"])
            self.code[hashlib.sha256(_NO_CODE.sub("", ptx).encode()).hexdigest()] = None
            if self.compile_only:
                return None
            program = parse(ptx)
            self._kept[key] = Executable(program, steps(program), kernel.metadata.shared, kernel.src.signature)
        return self._kept[key]


@contextmanager
def _not_assembling() -> Iterator[None]:
    """Leave the assembler out, and keep what is compiled where nobody looks for kernels to run."""
    with triton.knobs.cache.scope(), mock.patch.object(CUDABackend, "make_cubin", _not_assembled):
        triton.knobs.cache.dir = str(Path(triton.knobs.cache.dir) / "not-assembled")
        yield


def _not_assembled(*_: Any) -> bytes:
    """In place of what the assembler would make of the PTX: nothing here reads it."""
    return b""


@contextmanager
def executed(arch: int, change: Change = unchanged, compile_only: bool = False) -> Iterator[Execution]:
    """Let operators on CPU tensors execute, or only compile, what they would launch on `arch`."""
    execution = Execution(arch, change, compile_only)
    recording = launch._Recording(arch, _Running(execution))
    launch._recording.append(recording)
    try:
        with mock.patch.object(backend, "why_not_triton", return_value=None):
            yield execution
    finally:
        launch._recording.remove(recording)


class _Running(list[Launch]):
    """Launches, each of which runs when it is recorded."""

    def __init__(self, execution: Execution) -> None:
        super().__init__()
        self._execution = execution

    def append(self, described: Launch) -> None:
        """Run it."""
        self._execution.run(described)


def _memory(described: Launch) -> GlobalMemory:
    """The memory of the tensors among the arguments, from the first value to the last."""
    tensors = [value for value in _flat(list(described.arguments.values())) if isinstance(value, Tensor)]
    return GlobalMemory((tensor.data_ptr(), _extent(tensor)) for tensor in tensors if tensor.numel())


def _extent(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _values(described: Launch, signature: Mapping[str, Any]) -> list[float]:
    """The parameters of the compiled kernel; two that Triton adds are for memory that no kernel here takes."""
    found: list[float] = []

    def add(value: Any, kind: Any) -> None:
        if isinstance(kind, (tuple, list)):
            for one, of_one in zip(value, kind, strict=True):
                add(one, of_one)
        elif kind != "constexpr":
            found.append(value.data_ptr() if isinstance(value, Tensor) else value)

    for name, kind in signature.items():
        add(described.arguments.get(name), kind)
    return [*found, 0, 0]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    else:
        yield value
