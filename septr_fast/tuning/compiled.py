"""Kernels compiled for GPUs that need not be here, and what their machine code shows.

Triton itself specialises a launch, through a driver that only names an architecture: alignment of pointers
and integers, integers of value 1, dtypes and options are those of a run. What is found is kept in a folder
under a hash of everything that the machine code depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from septr_fast.kernels.launch import Launch, compile_only
from septr_fast.tuning import running_products

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


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
def _driver() -> Iterator[None]:
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


def identity(launch: Launch, arch: int) -> str:
    """A hash that two launches share where one compiled kernel serves both.

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
        with _driver():
            _warm_up(launch, arch, "identity")
    finally:
        triton.knobs.runtime.jit_cache_hook = previous
    versions = (triton.__version__, ptxas_version(arch), *(field.name for field in fields(Compiled)))
    source = (launch.kernel.cache_key, specialisations.pop(), arch, *versions)
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
    results: dict[str, Compiled | Failed] = {}
    with _driver(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_cached, key, *item, cache): key for key, item in launches.items()}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            progress()
    return results


def _cached(key: str, launch: Launch, arch: int, cache: Path) -> Compiled | Failed:
    path = cache / f"{key}.json"
    if path.exists():
        return Compiled(**json.loads(path.read_text(encoding="utf-8")))
    try:
        result = inspect(_warm_up(launch, arch, "compile"), arch)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Failed(" … ".join(dict.fromkeys((f"{type(error).__name__}: {lines[0]}", lines[-1]))))
    keep(key, result, cache)
    return result


def keep(key: str, result: Compiled, cache: Path) -> None:
    """Write what was found in the kernel of `identity` `key` to the folder `cache`."""
    with tempfile.NamedTemporaryFile("w", dir=cache, delete=False, encoding="utf-8") as file:
        json.dump(asdict(result), file)
    os.replace(file.name, cache / f"{key}.json")


def inspect(kernel: Any, arch: int) -> Compiled:
    """Disassemble a compiled kernel and count."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _USAGE.search(_run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name))
        machine_code = _run(triton.knobs.nvidia.nvdisasm.path, "-c", "--no-dataflow", file.name)
    counts, beside = Counter(_INSTRUCTION.findall(machine_code)), running_products.scan(machine_code)
    if usage is None or not counts:
        raise ValueError(f"no machine code found for sm_{arch}")
    return Compiled(
        registers=int(usage[1]),
        stack=int(usage[2]),
        spills=counts["STL"] + counts["LDL"],
        shared_memory=kernel.metadata.shared,
        tensor_memory=kernel.metadata.tmem_size,
        tensor_cores={name: count for name, count in sorted(counts.items()) if name.endswith("MMA")},
        touched=len(beside.touched),
        stores_beside=len(beside.stores),
    )


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
