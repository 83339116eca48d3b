"""`septr-fast info`: versions, devices, the backend that each pass takes there, and why."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator

import torch

import septr_fast.kernels as kernels
from septr_fast.kernels import launch
from septr_fast.passes import backend
from septr_fast.passes.torch import cores
from septr_fast.passes.triton import tuned

HELP = "versions, devices, the backend of every pass there, and why"
PASSES = ("axis_pass", "low_rank_pass", "class_only_pass")
"""The passes of `septr_fast.passes.dispatch`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to try the kernels too."""
    parser.add_argument("--test", action="store_true", help="try the kernels on every CUDA device, beside PyTorch")


def taken(pass_name: str, device: torch.device) -> tuple[str, str]:
    """The backend that "auto" takes for a pass on `device`, and why."""
    reason = backend.why_not_triton(pass_name, device)
    if device.type == "cuda":
        return (
            ("triton", "Triton can run here, for products in 16 bits; in float32 torch")
            if reason is None
            else ("torch", reason)
        )
    return "torch", '"auto" takes Triton on CUDA devices alone' + ("" if reason is None else f"; {reason}")


def table(device: torch.device) -> str:
    """Which launch configurations serve `device`."""
    arch = launch.architecture(device)
    own = backend.capability(device) == arch
    shipped = f"shipped for sm_{arch}" if own else f"shipped by default, those for sm_{arch}"
    if device.type != "cuda":
        return shipped
    name = backend.device_name(device)
    file = tuned.path(name)
    if not file.exists():
        return f"{shipped}; none tuned ({file})"
    try:
        count = len(tuned.read(file, name, backend.capability(device)))
    except (OSError, ValueError) as error:
        return f"{shipped}; {file} is not used: {error}"
    return f"{count} tuned in {file}; the others {shipped}"


def shared() -> str:
    """How a pass in PyTorch uses the cores of this machine."""
    reason = cores.why_not()
    if reason is not None:
        return f"share every operation: {reason}"
    return f"{cores.count()} of them take chunks of their own"


def assembler(capability: int | None) -> list[str]:
    """Triton's assembler for a CUDA device, and what is known to be wrong with it."""
    if capability is None or backend.versions()["triton"] is None:
        return []
    from septr_fast.tuning.assembly import assemblers

    first, *faults = assemblers.described(capability)
    return [f"  assembler        {first}", *(f"    {fault}" for fault in faults)]


def text() -> str:
    """All of it, to read."""
    lines = [f"{name:10} {version or 'none'}" for name, version in backend.versions().items()]
    if backend.is_to_interpret():
        runs = "Triton kernels run in the interpreter" if backend.interprets() else "no Triton kernel runs: unset it"
        lines.append(f"TRITON_INTERPRET=1: {runs}")
    for device in backend.devices():
        capability = backend.capability(device)
        arch = platform.machine() if capability is None else f"sm_{capability}"
        name = "" if device.type == "cpu" else f"{backend.device_name(device)}, "
        lines += ["", f"{device} ({name}{arch})", f"  configurations   {table(device)}"]
        if device.type == "cpu":
            lines.append(f"  cores            {shared()}")
        else:
            lines += assembler(capability)
        for pass_name in PASSES:
            chosen, reason = taken(pass_name, device)
            lines.append(f"  {pass_name:15}  {chosen}: {reason}")
    return "\n".join(lines)


def trials() -> Iterator[tuple[str, bool]]:
    """What comes of a trial of the kernels on every CUDA device, in every dtype, and whether it went well."""
    devices = [device for device in backend.devices() if device.type == "cuda"]
    if not devices:
        yield "no kernel was tried: they need a CUDA device", True
    for device in devices:
        for dtype in kernels.DTYPES:
            start = time.perf_counter()
            reason = backend.why_not_triton(PASSES[0], device) or _verdict(device, dtype)
            took = f"{device}, {str(dtype).removeprefix('torch.')}, {time.perf_counter() - start:.1f} s"
            yield f"{took}: {'the kernels do as PyTorch does' if reason is None else reason}", reason is None


def _verdict(device: torch.device, dtype: torch.dtype) -> str | None:
    from septr_fast.passes.triton import trial

    return trial.verdict(device, dtype)


def run(test: bool) -> int:
    """Print the text, and trials where wanted; return the exit status, 1 where one of them failed."""
    sys.stdout.write(f"{text()}\n")
    status = 0
    for line, right in trials() if test else ():
        sys.stdout.write(f"\n{line}\n")
        sys.stdout.flush()
        status |= not right
    return status
