"""Kernels of a check compiled before it starts its clock: several at a time, a core each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from septr_fast.kernels import launch

from septr_fast.tuning.ahead import compile_ahead


def compile_calls(calls: Sequence[Callable[[], Any]], device: torch.device, jobs: int | None = None) -> None:
    """Compile what `calls` launch on a GPU, each kernel once; the calls compute nothing meanwhile.

    Args:
        calls: what they return is of no meaning.
        device: where they launch; nothing happens on a CPU, where kernels are interpreted.
        jobs: kernels compiled at a time; one a core by default.
    """
    if device.type != "cuda":
        return
    with launch.record(launch.architecture(device)) as recorded:
        for call in calls:
            call()
    compile_ahead([one for one in recorded if one.programs > 0], device, jobs or os.cpu_count() or 1)
