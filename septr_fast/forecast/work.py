"""What one program of a compiled kernel asks of each unit of a multiprocessor, in cycles of the multiprocessor.

Throughputs are those of the CUDA programming guide's table of arithmetic instructions: a quarter of a multiprocessor
starts one instruction of a warp in a cycle; its special functions do 4 lanes in a cycle, whole numbers, conversions and
comparisons 16, float32 16 or 32; shared memory moves 128 bytes for all four. Accesses are taken to be free of conflicts
over banks but where these were counted: `with_counts`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from septr_fast.forecast import rounds
from septr_fast.forecast.devices import Device
from septr_fast.kernels.launch import Launch
from septr_fast.tuning import compiled
from septr_fast.tuning.assembly.disassembly import disassembled
from septr_fast.tuning.assembly.running_products import Instruction
from septr_fast.tuning.compiled import Compiled
from septr_fast.tuning.kernel_report import programs_per_multiprocessor

QUARTERS = 4
WARP = 32
SECTOR = 32
"""Bytes of global memory that are moved together."""
SPECIAL = ("MUFU",)
PLAIN = ("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2")
SHARED = ("LDS", "STS", "LDSM", "STSM", "SHFL", "ATOMS")
GLOBAL = ("LDG", "STG", "LDGSTS")
UNITED = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "WARPGROUP", "BAR", "SYNCS", "UTMALDG", "UTMASTG")
"""Neither whole numbers nor float32: products, barriers, copies of tiles."""
OLD_ON_HOPPER = 0.62
"""Share of its tensor cores' rate that an sm_90 attains through the instructions of sm_80 (arXiv 2501.12084)."""

_GROUPS = re.compile(r"\.64x(\d+)x(\d+)")
_SIZES = re.compile(r"\.(16816|1688|16832)\b")
_FRAGMENTS = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "16832": 16 * 8 * 32}


@dataclass(frozen=True)
class Work:
    """One program of a kernel, counted.

    Attributes:
        issued: instructions of its warps.
        whole: of them those of 16 lanes in a cycle: whole numbers, conversions, comparisons, moves.
        plain: float32.
        special: exponentials, reciprocals, roots.
        shared: passes over shared memory.
        shared_by_products: further ones, of tensor cores that read their operands there.
        requests: instructions of warps that read or write global memory.
        moved: bytes between registers and the L2 cache.
        copied: bytes from the L2 cache to shared memory while the program goes on.
        products: operations in products, as the instructions say; 0 where they do not say.
        old: of these by the instructions of sm_80.
        resident: programs on a multiprocessor at a time.
    """

    issued: float
    whole: float
    plain: float
    special: float
    shared: float
    shared_by_products: float
    requests: float
    moved: float
    copied: float
    products: float
    old: float
    resident: int

    def cycles(self, device: Device, cache_bytes: float, executed_flops: float) -> dict[str, float]:
        """Cycles of a multiprocessor by unit.

        Args:
            device: where it runs.
            cache_bytes: that a multiprocessor reads from the L2 cache in a cycle while all do.
            executed_flops: of one program in products.
        """
        rate = device.tensor * device.products
        if self.old and device.arch == 90:
            rate /= 1 + self.old / self.products * (1 / OLD_ON_HOPPER - 1)
        return {
            "issue": self.issued / QUARTERS,
            "whole numbers": self.whole * 2 / QUARTERS,
            "float32": self.plain / device.plain / QUARTERS,
            "special functions": self.special * 8 / QUARTERS,
            "shared memory": self.shared + self.shared_by_products,
            "tensor cores": executed_flops / rate,
            "L2 cache": (self.moved + self.copied) / cache_bytes,
        }

    def waited_for(self, cycles: Mapping[str, float], cache_bytes: float) -> tuple[float, ...]:
        """Of those what the warps of a program do one after the other: instructions, shared memory, products, L2."""
        instructions = max(cycles[unit] for unit in ("issue", "whole numbers", "float32", "special functions"))
        return instructions, self.shared, cycles["tensor cores"], self.moved / cache_bytes


def with_counts(work: Work, row: Mapping[str, str] | None) -> Work:
    """`work` with what was counted where its kernel was executed on a CPU, of which instructions alone tell nothing.

    That is how many sectors of global memory a request of a warp touches, where otherwise every lane is taken to touch
    bytes of its own (the fewer bytes of both are moved: of a sector that two requests touch a half each, the second
    finds its half in L1), and how many passes over shared memory there are for each that would do without conflicts.

    Args:
        work: of a kernel.
        row: of `executed.of_kernels`; None where the kernel was not executed.
    """
    if row is None:
        return work
    passes, conflicts = float(row["passes over the banks"]), float(row["of these by conflicts"])
    shared = work.shared * (passes / (passes - conflicts) if passes > conflicts else 1.0)
    touched = work.requests * float(row["sectors per request"] or 0) * SECTOR
    return replace(work, shared=shared, moved=min(work.moved, touched))


def of_launch(launch: Launch, arch: int) -> Work:
    """Compile a launch for an architecture inside `compiled.driver()`, and count.

    Raises:
        ValueError: where it does not compile, or its loops are not understood.
    """
    kernel = compiled.attempted(launch, arch)
    (found,) = compiled.inspect([kernel], arch)
    if not isinstance(found, Compiled):
        raise ValueError(f"{launch.name} for sm_{arch}: {found.reason}")
    return counted(kernel, found, launch, arch)


def counted(kernel: Any, found: Compiled, launch: Launch, arch: int) -> Work:
    """The work of one program of a compiled kernel."""
    (code,) = disassembled([kernel.asm["cubin"]], arch)
    try:
        executed = rounds.executed(code, kernel.asm["ttgir"], launch.arguments)
    except ValueError as error:
        raise ValueError(f"{launch.name} for sm_{arch}: {error}") from error
    warps = launch.config.warps
    resident = programs_per_multiprocessor(arch, warps, found)
    return summed(executed, warps, resident)


def summed(executed: Iterable[tuple[Instruction, float]], warps: int, resident: int) -> Work:
    """The work of one program from its instructions, each with how often a warp executes it."""
    totals = dict.fromkeys([field.name for field in fields(Work) if field.type == "float"], 0.0)
    for one, times in executed:
        count = times * warps
        totals["issued"] += count
        if one.name in SPECIAL:
            totals["special"] += count
        elif one.name in PLAIN:
            totals["plain"] += count
        elif one.name in SHARED:
            totals["shared"] += count * _passes(one)
        elif one.name not in (*GLOBAL, *UNITED) and not one.name.startswith("U"):
            totals["whole"] += count
        if one.name in GLOBAL:
            totals["requests"] += count
            totals["copied" if one.name == "LDGSTS" else "moved"] += count * WARP * _bytes(one)
        if one.name == "LDGSTS":
            totals["shared"] += count * _passes(one)
        operations, read = _product(one)
        totals["products"] += count * operations
        totals["shared_by_products"] += count * read
        totals["old"] += count * operations if one.name == "HMMA" else 0.0
    return Work(**totals, resident=resident)


def _product(one: Instruction) -> tuple[float, float]:
    """A warp's operations in a product, and its passes over shared memory."""
    if one.name == "HGMMA":
        size = _GROUPS.search(one.suffixes)
        if size is None:
            raise ValueError(f"no size of a product: {one.text}")
        columns, depth = int(size[1]), int(size[2])
        left = 0 if one.operands[1].startswith("R") else 64
        return 2 * 64 * columns * depth / 4, (columns + left) * depth * 2 / 128 / 4
    if one.name == "HMMA":
        fragment = _SIZES.search(one.suffixes)
        if fragment is None:
            raise ValueError(f"no size of a product: {one.text}")
        return 2.0 * _FRAGMENTS[fragment[1]], 0.0
    return 0.0, 0.0


def _passes(one: Instruction) -> float:
    """Passes over the banks of shared memory of one warp's instruction."""
    matrices = re.search(r"\.M88\.(\d)", one.suffixes)
    if one.name in ("LDSM", "STSM"):
        return float(matrices[1]) if matrices else 1.0
    return max(1.0, _bytes(one) / 4)


def _bytes(one: Instruction) -> float:
    """Bytes of a lane."""
    sizes = {".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}
    return next((size for suffix, size in sizes.items() if f"{suffix}." in f"{one.suffixes}."), 4)


def of_launches(
    launches: Mapping[int, Launch], arch: int, cache: Path, jobs: int, progress: Callable[[int], Callable[[], object]]
) -> dict[int, Work]:
    """The work of launches for one architecture, by the keys given, each distinct one compiled once.

    Args:
        launches: with operands that may be on the meta device.
        arch: compute capability.
        cache: folder of earlier results.
        jobs: how many kernels are compiled at the same time.
        progress: called with the number of distinct kernels; what it returns is called after each.

    Raises:
        ValueError: where a kernel does not compile, or its loops are not understood.
    """
    cache.mkdir(parents=True, exist_ok=True)
    keys = {place: _key(launch, arch) for place, launch in launches.items()}
    kernels: dict[str, dict[str, Launch]] = {}
    for place, launch in launches.items():
        kernels.setdefault(compiled.identity(launch, arch), {})[keys[place]] = launch
    advance = progress(len(kernels))

    def made(of_one: Mapping[str, Launch]) -> dict[str, Work]:
        works = {}
        for key, launch in of_one.items():
            file = cache / f"{key}.json"
            if file.exists():
                works[key] = Work(**json.loads(file.read_text(encoding="utf-8")))
            else:
                works[key] = of_launch(launch, arch)
                file.write_text(json.dumps(asdict(works[key])), encoding="utf-8")
        advance()
        return works

    with compiled.driver(), ThreadPoolExecutor(jobs) as pool:
        found = {key: work for works in pool.map(made, kernels.values()) for key, work in works.items()}
    return {place: found[key] for place, key in keys.items()}


def _key(launch: Launch, arch: int) -> str:
    """A hash of the kernel, of the whole numbers that its loops may depend on, and of how is counted."""
    numbers = sorted((name, value) for name, value in launch.arguments.items() if isinstance(value, int))
    counting = [Path(rounds.__file__).read_bytes(), Path(__file__).read_bytes()]
    return hashlib.sha256(repr((compiled.identity(launch, arch), numbers, counting)).encode()).hexdigest()
