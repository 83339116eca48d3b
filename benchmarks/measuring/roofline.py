"""Every kernel's arithmetic, bytes and, on a GPU, time: what a roofline is drawn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from septr_fast.passes import backend
from septr_fast.report.results import Kernel

BATCH = 8
STATIC_ARCHITECTURE = 90
"""For the counts, where there is no GPU."""

PRECISION = "bfloat16"
CASE = f"training step, default, batch {{batch}}, {PRECISION}"


def kernels(device: torch.device, *, smoke: bool = False) -> list[Kernel]:
    """The kernels of a training step of the default model in bfloat16; none without Triton.

    Work and bytes are counted from the launches of the step. On a GPU the times are those that PyTorch's
    profiler sees in a step, the median of five.

    Args:
        device: where the kernels run.
        smoke: a tiny model in place of the default one.
    """
    if backend.why_not_triton("axis_pass", torch.device("meta")) is not None:
        return []
    config, batch = (SMALL["benchmark"], 2) if smoke else ({}, BATCH)
    counted = _counted(config, batch, backend.capability(device) or STATIC_ARCHITECTURE)
    times = _times(config, batch, device) if backend.choose("auto", "axis_pass", device) == "triton" else {}
    case = CASE.format(batch=batch) + ("" if times else f", counted for sm_{STATIC_ARCHITECTURE}")
    return [
        Kernel(name, case, launches, flops, size, times.get(name), PRECISION)
        for name, (launches, flops, size) in sorted(counted.items())
    ]


def _counted(config: dict[str, Any], batch: int, arch: int) -> dict[str, tuple[int, int, int]]:
    """Launches, operations of use and bytes of every kernel, by the name of its function."""
    from septr_fast.tuning.kernel_launches import recording
    from septr_fast.tuning.kernel_report import bytes_moved

    with recording(arch) as recorded:
        _step(config, batch, torch.device("meta"))()
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for launch in recorded:
        sums = found[launch.kernel.__name__]
        for index, value in enumerate((1, launch.flops, bytes_moved(launch))):
            sums[index] += value
    return {name: (count, flops, size) for name, (count, flops, size) in found.items()}


def _times(config: dict[str, Any], batch: int, device: torch.device) -> dict[str, float]:
    """Seconds of every kernel in a step, by the name of its function."""
    step = _step(config, batch, device)
    for _ in range(3):
        step()
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(5):
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize(device)
        for event in profiler.key_averages():
            samples[event.key].append(event.self_device_time_total / 1e6)
    return {name: sorted(times)[len(times) // 2] for name, times in samples.items()}


def _step(config: dict[str, Any], batch: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward on Triton kernels."""
    with device:
        model = SepTr(**config, backend="triton").bfloat16()
        first = model.blocks[0]
        x = torch.randn(batch, first.channels, *first.input_size, dtype=torch.bfloat16)
        labels = torch.zeros(batch, dtype=torch.int64)

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()

    return step
