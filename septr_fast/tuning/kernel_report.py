"""The kernel report: every kernel as shipped, cross-compiled, and where one falls short.

Needs no GPU. A kernel falls short where it does not compile, spills registers, uses registers that tensor cores
may still read or write (`running_products`), takes more shared or tensor memory than its architecture has, leaves
the architecture's own tensor cores unused for 16-bit values or, in the default model, spends much of its arithmetic
on padding. Kernels of the class token have too few queries for the tiles of newer tensor cores, and little work: of
them any tensor-core instruction is asked.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from septr_fast.kernels.launch import SHARED_MEMORY, Launch, ceil_div
from septr_fast.report.tables import aligned
from septr_fast.tuning import compiled, executed
from septr_fast.tuning.compiled import Compiled, Failed, compile_all, identity
from septr_fast.tuning.tensor_bytes import distinct_bytes

DEFAULT = "default"
"""What the model is called whose arithmetic is held against its padding."""

CLASS_TOKEN = "class_"
"""How the names of the class token's kernels begin."""

LARGEST_PADDING = 1.1
"""Operations executed over operations of use."""

TENSOR_MEMORY = 512
"""Columns of Blackwell's tensor memory on a multiprocessor; a kernel that takes more compiles to a trap."""

TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTC*MMA", 120: "HMMA"}
"""The instruction of each architecture's own tensor cores: wgmma on 90, tcgen05 on 100."""


class _Multiprocessor(NamedTuple):
    """What programs share: bytes of shared memory, warps, programs. Registers are 65536 on all."""

    shared_memory: int
    warps: int
    programs: int


_MULTIPROCESSORS = {
    80: _Multiprocessor(167936, 64, 32),
    86: _Multiprocessor(102400, 48, 16),
    89: _Multiprocessor(102400, 48, 24),
    90: _Multiprocessor(233472, 64, 32),
    100: _Multiprocessor(233472, 64, 32),
    120: _Multiprocessor(102400, 48, 24),
}


class Case(NamedTuple):
    """Launches of one model in one dtype on one architecture."""

    model: str
    dtype: str
    arch: int


@dataclass(frozen=True)
class Entry:
    """One compiled kernel of one case, and the launches that it serves.

    Attributes:
        case: model, dtype and architecture.
        launches: that this kernel serves while the model runs.
        compiled: what was found, or why there is nothing.
        identity: of the kernel, by `compiled.identity`.
    """

    case: Case
    launches: Sequence[Launch]
    compiled: Compiled | Failed
    identity: str = ""

    @property
    def name(self) -> str:
        """The kernel's name in the tables."""
        return self.launches[0].name

    @property
    def padding(self) -> float | None:
        """Operations executed over operations of use; None without matrix products."""
        useful = sum(launch.flops for launch in self.launches)
        return sum(launch.executed_flops for launch in self.launches) / useful if useful else None

    @property
    def largest(self) -> Launch:
        """The launch that moves most."""
        return max(self.launches, key=bytes_moved)

    @property
    def programs_per_multiprocessor(self) -> int:
        """How many programs run on a multiprocessor at a time; 0 for what did not compile."""
        if isinstance(self.compiled, Failed):
            return 0
        return programs_per_multiprocessor(self.case.arch, self.launches[0].config.warps, self.compiled)

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that these programs hold."""
        warps = self.programs_per_multiprocessor * self.launches[0].config.warps
        return warps / _MULTIPROCESSORS[self.case.arch].warps

    @property
    def shortfalls(self) -> list[str]:
        """What falls short, and of what; empty for a kernel that is as it should be."""
        if isinstance(self.compiled, Failed):
            return [f"does not compile: {self.compiled.reason}"]
        arch, found = self.case.arch, []
        if self.compiled.spills:
            found.append(f"{self.compiled.spills} instructions spill registers")
        if self.compiled.touched:
            found.append(f"{self.compiled.touched} instructions use registers of products that may still be computed")
        if self.compiled.shared_memory > SHARED_MEMORY[arch]:
            found.append(f"{self.compiled.shared_memory} bytes of shared memory, limit {SHARED_MEMORY[arch]}")
        if self.compiled.tensor_memory > TENSOR_MEMORY:
            found.append(f"{self.compiled.tensor_memory} columns of tensor memory, limit {TENSOR_MEMORY}")
        body = not self.name.startswith(CLASS_TOKEN)
        if self.padding is not None and _has_16_bit_values(self.launches[0]):
            wanted = TENSOR_CORES[arch] if body else "*MMA"
            if not fnmatch.filter(self.compiled.tensor_cores, wanted):
                got = ", ".join(self.compiled.tensor_cores) or "none"
                found.append(f"expected tensor-core instructions {wanted}, got {got}")
        if self.padding is not None and body and self.case.model == DEFAULT and self.padding > LARGEST_PADDING:
            found.append(f"executes {self.padding:.2f} times the operations of use, limit {LARGEST_PADDING}")
        return found


def examine(
    recorded: Iterable[tuple[Case, Sequence[Launch]]],
    cache: Path,
    jobs: int,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
) -> list[Entry]:
    """Compile the launches of every case.

    Args:
        recorded: cases with their launches.
        cache: folder of earlier results.
        jobs: how many kernels are compiled at the same time.
        progress: called with the number of distinct kernels; what it returns is called after each.
    """
    groups: dict[tuple[Case, str], list[Launch]] = {}
    for case, launches in recorded:
        for launch in launches:
            groups.setdefault((case, identity(launch, case.arch)), []).append(launch)
    distinct = {key: (group[0], case.arch) for (case, key), group in groups.items()}
    found = compile_all(distinct, cache, jobs, progress(len(distinct)))
    return [Entry(case, group, found[key], key) for (case, key), group in groups.items()]


def bytes_moved(launch: Launch) -> int:
    """Bytes of the distinct tensors among the arguments of `launch`, repeated elements counted once."""
    return distinct_bytes(_tensors(launch))


def programs_per_multiprocessor(arch: int, warps: int, compiled: Compiled) -> int:
    """How many programs of `warps` warps run on a multiprocessor at a time.

    Registers are given to warps in units of 256, to each quarter of a multiprocessor apart; shared memory in
    units of 128 bytes, with 1 KB for the system beside every program's.
    """
    limits = _MULTIPROCESSORS[arch]
    registers = ceil_div(32 * compiled.registers, 256) * 256
    by_registers = 4 * (65536 // 4 // registers) // warps
    by_memory = limits.shared_memory // (ceil_div(compiled.shared_memory, 128) * 128 + 1024)
    by_tensor_memory = TENSOR_MEMORY // compiled.tensor_memory if compiled.tensor_memory else limits.programs
    return min(by_registers, by_memory, by_tensor_memory, limits.warps // warps, limits.programs)


def as_json(entry: Entry) -> dict[str, Any]:
    """`entry` as plain values; programs, operations and bytes are those of its largest launch."""
    first = entry.launches[0]
    found: dict[str, Any] = {} if isinstance(entry.compiled, Failed) else vars(entry.compiled)
    return {
        "kernel": entry.name,
        **entry.case._asdict(),
        "tiles": dict(first.config.tiles),
        "warps": first.config.warps,
        "stages": first.config.stages,
        **found,
        "shared_memory_limit": SHARED_MEMORY[entry.case.arch],
        "programs_per_multiprocessor": entry.programs_per_multiprocessor,
        "occupancy": round(entry.occupancy, 3),
        "programs": entry.largest.programs,
        "flops": entry.largest.flops,
        "executed_flops": entry.largest.executed_flops,
        "least_bytes_moved": bytes_moved(entry.largest),
        "shortfalls": entry.shortfalls,
        "identity": entry.identity,
    }


def remember(kernels: Iterable[dict[str, Any]], cache: Path) -> None:
    """Put what an earlier report found, as `as_json` gives it, into the folder `cache`, for kernels that stay."""
    names = [field.name for field in fields(Compiled)]
    for kernel in kernels:
        if all(name in kernel for name in (*names, "identity")):
            compiled.keep(kernel["identity"], Compiled(**{name: kernel[name] for name in names}), cache)


_HEADER = (
    "kernel", "tiles", "warps", "stages", "registers", "stack", "spills", "beside", "shared", "tensor cores",
    "occupancy", "programs", "GFLOP", "executed", "least MB",
)  # fmt: skip


def table(entries: Sequence[Entry], counted: Sequence[executed.Row] = ()) -> str:
    """Columns to read, one table per case, each followed by what falls short, and by what was counted of its kernels.

    Programs, operations and bytes are those of a kernel's largest launch; bytes are the floor, every distinct
    tensor read or written once. The operations executed are over those of use. Beside: stores to shared memory while
    a product may be running; each is right where it writes what the product does not read, which execution of the
    compiled code checks address by address.
    """
    cases = dict.fromkeys(entry.case for entry in entries)
    return "\n\n".join(
        text
        for case in cases
        for text in _case_tables(case, [entry for entry in entries if entry.case == case], counted)
    )


def _case_tables(case: Case, entries: Sequence[Entry], counted: Sequence[executed.Row]) -> Iterator[str]:
    title = f"{case.model}, {case.dtype}, sm_{case.arch} ({SHARED_MEMORY[case.arch]} bytes of shared memory)"
    rows = [_HEADER, *(_cells(entry) for entry in entries)]
    yield "\n".join([title, *aligned(rows), *(f"  {text}" for entry in entries for text in complaints(entry))])
    found = counts(case, entries, counted)
    if found:
        header = ("kernel", *(name for name in next(iter(found.values())) if name != "kernel"))
        rows = [header, *(tuple(row[name] for name in header) for row in found.values())]
        yield "\n".join(
            [f"executed on a CPU, per program, in small passes: {case.dtype}, sm_{case.arch}", *aligned(rows)]
        )


def counts(case: Case, entries: Iterable[Entry], counted: Sequence[executed.Row]) -> dict[str, executed.Row]:
    """Of the rows that `executed.read` gives, one for each kernel of a case that was executed."""
    found = executed.of_kernels(counted, case.dtype, case.arch, wide=case.model == DEFAULT)
    return {name: found[name] for name in dict.fromkeys(entry.name for entry in entries) if name in found}


def complaints(entry: Entry) -> list[str]:
    """The shortfalls of `entry` as sentences that stand alone."""
    case = entry.case
    where = f"{entry.name} on sm_{case.arch}, {case.dtype}, {case.model}"
    return [f"{where}: {shortfall}" for shortfall in entry.shortfalls]


def _cells(entry: Entry) -> tuple[str, ...]:
    config, compiled = entry.launches[0].config, entry.compiled
    found: tuple[str, ...] = ("-",) * 7
    if isinstance(compiled, Compiled):
        cores = " ".join(f"{name} {count}" for name, count in compiled.tensor_cores.items()) or "-"
        occupancy = f"{entry.programs_per_multiprocessor} ({entry.occupancy:.0%})"
        numbers = (compiled.registers, compiled.stack, compiled.spills, compiled.stores_beside, compiled.shared_memory)
        found = (*(str(number) for number in numbers), cores, occupancy)
    return (
        entry.name,
        " ".join(str(size) for size in config.tiles.values()),
        str(config.warps),
        str(config.stages),
        *found,
        str(entry.largest.programs),
        f"{entry.largest.flops / 1e9:.3g}",
        "-" if entry.padding is None else f"{entry.padding:.3f}",
        f"{bytes_moved(entry.largest) / 1e6:.3f}",
    )


def _tensors(launch: Launch) -> list[Tensor]:
    return [argument for argument in launch.arguments.values() if isinstance(argument, Tensor)]


def _has_16_bit_values(launch: Launch) -> bool:
    return any(x.dtype in (torch.float16, torch.bfloat16) for x in _tensors(launch))
