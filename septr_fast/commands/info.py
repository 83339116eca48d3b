"""`septr-fast info`: versions, devices, the backend that each pass takes there, and why."""

from __future__ import annotations

import argparse
import platform
import sys

import torch

from septr_fast.kernels import launch
from septr_fast.passes import backend
from septr_fast.passes.torch import cores
from septr_fast.passes.triton import tuned

HELP = "versions, devices, the backend of every pass there, and why"
PASSES = ("axis_pass", "low_rank_pass", "class_only_pass")
"""The passes of `septr_fast.passes.dispatch`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: it tells all it knows."""


def taken(pass_name: str, device: torch.device) -> tuple[str, str]:
    """The backend that "auto" takes for a pass on `device`, and why."""
    reason = backend.why_not_triton(pass_name, device)
    if device.type == "cuda":
        return ("triton", "Triton can run here") if reason is None else ("torch", reason)
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
        for pass_name in PASSES:
            chosen, reason = taken(pass_name, device)
            lines.append(f"  {pass_name:15}  {chosen}: {reason}")
    return "\n".join(lines)


def run() -> int:
    """Print the text; return the exit status."""
    sys.stdout.write(f"{text()}\n")
    return 0
