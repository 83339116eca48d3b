"""Compiling launches ahead of their first run, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from septr_fast.kernels import launch
from septr_fast.kernels.launch import SHARED_MEMORY, Launch


def compile_ahead(launches: Sequence[Launch], device: torch.device, jobs: int) -> list[str | None]:
    """Compile launches at the same time; why each of them cannot be run, None where it can.

    Args:
        launches: recorded.
        device: a CUDA device.
        jobs: kernels compiled at a time; 0 leaves compiling to the first run.
    """
    if not jobs:
        return [None] * len(launches)
    limit = SHARED_MEMORY[launch.architecture(device)]
    distinct = {_signature(launched): launched for launched in launches}
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda launched: _why_not(launched, device, limit), distinct.values())
        reasons = dict(zip(distinct, found, strict=True))
    return [reasons[_signature(launched)] for launched in launches]


def sentence(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _why_not(launched: Launch, device: torch.device, limit: int) -> str | None:
    try:
        with torch.cuda.device(device):
            compiled = launch.compile_only(launched)
    except Exception as error:
        return sentence(error)
    if compiled.metadata.shared > limit:
        return f"{compiled.metadata.shared} bytes of shared memory, the limit is {limit}"
    return None


def _signature(launched: Launch) -> str:
    """Most of what Triton compiles a kernel for; what this leaves out compiles at the first run."""

    def kind(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.data_ptr() % 16
        if isinstance(value, tuple):
            return tuple(kind(name, part) for part in value)
        return (value == 1, value % 16) if isinstance(value, int) and not name.isupper() else value

    return repr(
        (launched.name, launched.config, [(name, kind(name, value)) for name, value in launched.arguments.items()])
    )
