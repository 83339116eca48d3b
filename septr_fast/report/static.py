"""What compiled kernels show without a GPU: a table from the output of `python -m septr_fast kernels --json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from septr_fast.report.tables import markdown
from septr_fast.report.units import quantity, significant

TITLE = "Static evidence: compiled, not run"
MODEL = "default"
PREFERRED = ("bfloat16", 90)
"""Dtype and architecture that are shown where the file has them."""

LEGEND = (
    "Of a kernel that is compiled in several variants: the most registers, spills and shared memory, the fewest "
    "programs per multiprocessor, and work and bytes of the variant with the largest launch. Bytes are the least: "
    "every distinct operand once."
)
_KEYS = {"kernel", "model", "dtype", "arch", "flops", "executed_flops", "least_bytes_moved", "shortfalls"}


@dataclass(frozen=True)
class Evidence:
    """One file of compiled kernels.

    Attributes:
        versions: of torch, Triton and its assemblers.
        kernels: as `septr_fast.tuning.kernel_report.as_json` writes them, those of the default model.
    """

    versions: dict[str, Any]
    kernels: list[dict[str, Any]]

    @property
    def shown(self) -> tuple[str, int]:
        """Dtype and architecture of the table."""
        found = [(str(kernel["dtype"]), int(kernel["arch"])) for kernel in self.kernels]
        return PREFERRED if PREFERRED in found else found[0]


def recognises(content: Any) -> bool:
    """Whether `content`, read from JSON, claims to be of compiled kernels."""
    return isinstance(content, dict) and {"versions", "kernels", "shortfalls"} <= content.keys()


def load(path: Path) -> Evidence:
    """Read what `kernels --json` printed; raise `ValueError`, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not recognises(content):
            raise ValueError("no versions, kernels and shortfalls")
        kernels = [kernel for kernel in content["kernels"] if kernel["model"] == MODEL]
        missing = sorted({key for kernel in kernels for key in _KEYS - kernel.keys()})
        if missing or not kernels:
            raise ValueError(f"kernels without {', '.join(missing)}" if missing else f"no kernels of the {MODEL} model")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected the output of `septr_fast kernels --json`: {error}") from error
    return Evidence(content["versions"], kernels)


def about(evidence: Evidence) -> str:
    """One line: what was compiled for what, and by which versions."""
    dtype, arch = evidence.shown
    names = [f"{name} {version}" for name, version in evidence.versions.items() if isinstance(version, str)]
    assembler = evidence.versions.get("ptxas", {}).get(f"sm_{arch}")
    names += [f"ptxas {assembler}"] if assembler else []
    return f"Kernels of the {MODEL} model in {dtype}, compiled for sm_{arch}: {', '.join(names)}. No kernel ran."


def table(evidence: Evidence) -> str:
    """One row for each kernel of the default model, in the dtype and for the architecture that is shown."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for kernel in _selected(evidence):
        groups.setdefault(str(kernel["kernel"]), []).append(kernel)
    header = (
        *("kernel", "registers", "spills", "shared memory", "tensor cores", "programs per multiprocessor"),
        *("GFLOP", "executed / useful FLOP", "least bytes"),
    )
    return markdown(header, (_cells(name, variants) for name, variants in groups.items()))


def shortfalls(evidence: Evidence) -> list[str]:
    """What falls short in the kernels of the table."""
    return [f"{kernel['kernel']}: {text}" for kernel in _selected(evidence) for text in kernel["shortfalls"]]


def _selected(evidence: Evidence) -> list[dict[str, Any]]:
    return [kernel for kernel in evidence.kernels if (kernel["dtype"], kernel["arch"]) == evidence.shown]


def _cells(name: str, variants: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    largest = max(variants, key=lambda kernel: (kernel["flops"], kernel["least_bytes_moved"]))
    compiled = [kernel for kernel in variants if "registers" in kernel]
    work = (
        significant(largest["flops"] / 1e9) if largest["flops"] else "",
        f"{largest['executed_flops'] / largest['flops']:.2f}" if largest["flops"] else "",
        quantity(largest["least_bytes_moved"], "B"),
    )
    if not compiled:
        return (name, "does not compile", "", "", "", "", *work)
    registers, spills, memory = (
        max(kernel[key] for kernel in compiled) for key in ("registers", "spills", "shared_memory")
    )
    return (
        name,
        str(registers),
        str(spills),
        f"{significant(memory / 1024)} KiB",
        ", ".join(largest.get("tensor_cores", {})),
        str(min(kernel["programs_per_multiprocessor"] for kernel in compiled)),
        *work,
    )
