"""NVIDIA's assembler, ptxas, that Triton uses for an architecture, and what others have reported wrong with it."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

OTHER = "TRITON_PTXAS_PATH names another (TRITON_PTXAS_BLACKWELL_PATH from sm_100 on)"
"""The way out; see docs/gpu.md."""


class Fault(NamedTuple):
    """A fault of the assembler that was reported in public, in code like that of these kernels.

    Attributes:
        archs: compute capabilities that it was seen on.
        mended: the first release without it.
        what: it does.
        report: where that was found.
    """

    archs: tuple[int, ...]
    mended: tuple[int, ...]
    what: str
    report: str


FAULTS = (
    Fault(
        (90,),
        (13, 3),
        "registers of a product's left operand given to others before the tensor cores have read them",
        "triton-lang/triton#11781",
    ),
    Fault(
        (90,),
        (13, 1),
        "wrong numbers and writes outside of shared memory in kernels with several chained products",
        "fla-org/flash-linear-attention#1262",
    ),
)
"""What `faults` knows, of all the incidents in docs/incidents.md."""


def version(arch: int) -> str:
    """The release and build of the assembler that Triton uses for `arch`, such as 12.8.93.

    Raises:
        RuntimeError: where Triton has none.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    path = get_ptxas(arch).path
    told = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"V(\d+(?:\.\d+)+)", told)
    return found[1] if found else str(get_ptxas(arch).version)


def faults(arch: int, of_version: str) -> list[Fault]:
    """What has been reported wrong with a version of the assembler for `arch`."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", of_version))
    return [fault for fault in FAULTS if arch in fault.archs and numbers < fault.mended]


def described(arch: int) -> list[str]:
    """The assembler for `arch`, and each thing that has been reported wrong with it, in lines to read."""
    try:
        own = version(arch)
    except Exception as error:
        return [f"no ptxas: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"]
    lines = [f"ptxas {own}"]
    for fault in faults(arch, own):
        mended = ".".join(map(str, fault.mended))
        lines.append(f"reported on sm_{arch}: {fault.what} ({fault.report}; not from CUDA {mended} on)")
    if len(lines) > 1:
        lines.append(f"the kernels are tried before they are used, and `septr-fast info --test` says how; {OTHER}")
    return lines
