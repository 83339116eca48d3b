"""Kernels compiled for GPUs that need not be here, and what their machine code shows.

Triton itself specialises a launch, through a driver that only names an architecture: alignment of pointers
and integers, integers of value 1, dtypes and options are those of a run. What is found is kept in a folder
under a hash of everything that the machine code depends on.
"""

from __future__ import annotations

import ast
import hashlib
import inspect as python_sources
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from septr_fast.kernels.launch import Launch, compile_only
from septr_fast.tuning.assembly import running_products
from septr_fast.tuning.assembly.disassembly import disassembled, registers_and_stack

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)
TOGETHER = 32
"""Kernels that are disassembled by one run."""


@dataclass(frozen=True)
class Compiled:
    """What one kernel's machine code takes and does.

    Attributes:
        registers: of one thread.
        stack: bytes of one thread.
        spills: instructions that store registers to local memory or load them from there.
        shared_memory: bytes of one program.
        tensor_memory: columns that one program takes of Blackwell's tensor memory.
        tensor_cores: how many instructions of each kind there are for the tensor cores.
        touched: instructions that use registers of a product that tensor cores may still compute.
        stores_beside: instructions that write shared memory while they may, or before a barrier behind that; see
            `running_products.Found`.
    """

    registers: int
    stack: int
    spills: int
    shared_memory: int
    tensor_memory: int
    tensor_cores: Mapping[str, int]
    touched: int = 0
    stores_beside: int = 0


@dataclass(frozen=True)
class Failed:
    """Why a kernel could not be compiled."""

    reason: str


class _Driver:
    """Triton's view of a GPU of some architecture; the device is the architecture and what it is for."""

    device: ContextVar[tuple[int, str]] = ContextVar("device")

    def get_current_device(self) -> tuple[int, str]:
        return self.device.get()

    def get_current_stream(self, device: tuple[int, str]) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.get()[0], 32)


@contextmanager
def driver() -> Iterator[None]:
    """Let Triton compile for the architecture that `_warm_up` names, without any GPU."""
    previous = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Driver())
    try:
        yield
    finally:
        triton.runtime.driver.set_active(previous)


def _warm_up(launch: Launch, arch: int, purpose: str) -> Any:
    """What Triton makes of `launch` on `arch`: a compiled kernel, or None where a hook holds it back."""
    _Driver.device.set((arch, purpose))
    return compile_only(launch)


def ptxas_version(arch: int) -> str:
    """The version of the assembler that Triton uses for `arch`."""
    return str(get_ptxas(arch).version)


@cache
def _code(kernel: Any) -> list[str]:
    """Syntax trees of a kernel and of all that it calls, and constants that they take: no words, no places in files."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        name = f"{function.fn.__module__}.{function.fn.__qualname__}"
        if name in found:
            continue
        outer = python_sources.getclosurevars(function.fn)
        taken = {**outer.globals, **outer.nonlocals}
        called = {key: value for key, value in taken.items() if isinstance(value, triton.JITFunction)}
        constants = {
            key: repr(value) for key, value in taken.items() if not isinstance(value, (ModuleType, triton.JITFunction))
        }
        body = ast.parse(function.src).body[0]
        if ast.get_docstring(body) is not None:
            body.body.pop(0)
        found[name] = f"{ast.dump(body)} {sorted(constants.items())}"
        waiting += called.values()
    return sorted(f"{name} {text}" for name, text in found.items())


def identity(launch: Launch, arch: int) -> str:
    """A hash that two launches share where one compiled kernel serves both, whatever is said of it in words.

    Args:
        launch: with tensors that may be on the meta device; a view's offset counts for its alignment.
        arch: compute capability.
    """
    specialisations: list[str] = []

    def hold_back(**event: Any) -> bool:
        specialisations.append(event["compile"]["key"])
        return True

    previous = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = hold_back
    try:
        with driver():
            _warm_up(launch, arch, "identity")
    finally:
        triton.knobs.runtime.jit_cache_hook = previous
    versions = (triton.__version__, ptxas_version(arch), *(field.name for field in fields(Compiled)))
    source = (_code(launch.kernel), specialisations.pop(), arch, *versions)
    return hashlib.sha256(repr(source).encode()).hexdigest()


def compile_all(
    launches: Mapping[str, tuple[Launch, int]], cache: Path, jobs: int, progress: Callable[[], object]
) -> dict[str, Compiled | Failed]:
    """Compile `launches`, each with its architecture, `jobs` at a time, or read what `cache` holds.

    Threads suffice: the compiler and the assembler run outside of Python's lock.

    Args:
        launches: by `identity`.
        cache: folder of earlier results, made where there is none.
        jobs: how many kernels are compiled at the same time.
        progress: called after each one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    kept = {key: cache / f"{key}.json" for key in launches}
    results: dict[str, Compiled | Failed] = {
        key: Compiled(**json.loads(path.read_text(encoding="utf-8"))) for key, path in kept.items() if path.exists()
    }
    for _ in results:
        progress()
    due = [key for key in launches if key not in results]
    with driver(), ThreadPoolExecutor(jobs) as pool:
        for arch in dict.fromkeys(launches[key][1] for key in due):
            keys = [key for key in due if launches[key][1] == arch]
            batches = [keys[place : place + TOGETHER] for place in range(0, len(keys), TOGETHER)]
            for batch in batches:
                kernels = pool.map(lambda key: attempted(*launches[key], progress), batch)
                for key, found in zip(batch, inspect(list(kernels), arch), strict=True):
                    results[key] = found
                    if isinstance(found, Compiled):
                        keep(key, found, cache)
    return results


def attempted(launch: Launch, arch: int, progress: Callable[[], object] = lambda: None) -> Any:
    """What Triton makes of `launch` on `arch`, as `inspect` takes it: a compiled kernel, or why there is none."""
    try:
        return _warm_up(launch, arch, "compile")
    except Exception as error:
        return _failed(error)
    finally:
        progress()


def _failed(error: Exception) -> Failed:
    lines = str(error).strip().splitlines() or [""]
    return Failed(" … ".join(dict.fromkeys((f"{type(error).__name__}: {lines[0]}", lines[-1]))))


def keep(key: str, result: Compiled, cache: Path) -> None:
    """Write what was found in the kernel of `identity` `key` to the folder `cache`."""
    with tempfile.NamedTemporaryFile("w", dir=cache, delete=False, encoding="utf-8") as file:
        json.dump(asdict(result), file)
    os.replace(file.name, cache / f"{key}.json")


def inspect(kernels: Sequence[Any], arch: int) -> list[Compiled | Failed]:
    """Disassemble kernels that were compiled for `arch`, and count; what has failed stays as it is."""
    sound = [kernel for kernel in kernels if not isinstance(kernel, Failed)]
    try:
        texts = iter(disassembled([kernel.asm["cubin"] for kernel in sound], arch) if sound else ())
    except Exception as error:
        return [kernel if isinstance(kernel, Failed) else _failed(error) for kernel in kernels]
    return [kernel if isinstance(kernel, Failed) else _counted(kernel, next(texts)) for kernel in kernels]


def _counted(kernel: Any, machine_code: str) -> Compiled | Failed:
    counts = Counter(_INSTRUCTION.findall(machine_code))
    try:
        beside = running_products.scan(machine_code)
        registers, stack = registers_and_stack(kernel.asm["cubin"])
    except Exception as error:
        return _failed(error)
    return Compiled(
        registers=registers,
        stack=stack,
        spills=counts["STL"] + counts["LDL"],
        shared_memory=kernel.metadata.shared,
        tensor_memory=kernel.metadata.tmem_size,
        tensor_cores={name: count for name, count in sorted(counts.items()) if name.endswith("MMA")},
        touched=len(beside.touched),
        stores_beside=len(beside.stores),
    )
