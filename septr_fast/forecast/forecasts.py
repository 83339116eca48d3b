"""Forecasts of whole passes, with the error that forecasts of published figures have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from septr_fast.forecast import host, known, measured, times, work
from septr_fast.forecast.devices import DEVICES
from septr_fast.forecast.known import Checked
from septr_fast.forecast.steps import counted, steps
from septr_fast.forecast.times import Fit
from septr_fast.kernels.launch import Launch
from septr_fast.report.results import Run
from septr_fast.tuning import executed

FIT = Fit(0.45, 20.0)
"""What meets published figures best: `known.fitted`."""
ERROR = 0.19
"""The mean error of forecasts of published figures that were left out of that choice: `known.error_when_left_out`."""

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "tf32": torch.float32,
    "autocast": torch.bfloat16,
}
"""Of products, by what a precision is called: in TF32 PyTorch rounds operands of products, the kernels do not; under
autocast tokens and parameters are in float32."""

WITHOUT_KERNELS = ("torch", "reference")
"""Backends that launch none of the kernels; what they take of a host is not measured."""

Progress = Callable[[int], Callable[[], object]]


def published(cache: Path, jobs: int, progress: Progress) -> list[Checked]:
    """Published figures beside their forecasts."""
    figures = known.published()
    return known.check(figures, known.works(figures, cache, jobs, progress), FIT)


def forecasts(
    config: Mapping[str, Any],
    devices: Sequence[str],
    batches: Sequence[int],
    training: bool,
    cache: Path,
    jobs: int,
    progress: Progress,
    runs: Sequence[Run] = (),
    precisions: Sequence[str] = ("bfloat16",),
    backend: str = "auto",
) -> list[dict[str, Any]]:
    """A forecast for each device and batch, as plain values, with what was measured of the default model.

    Args:
        config: constructor arguments of `SepTr`.
        devices: names of `DEVICES`.
        batches: numbers of spectrograms.
        training: whether a step of training is forecast.
        cache: folder of earlier results.
        jobs: kernels compiled at a time.
        progress: called with the number of distinct kernels; what it returns is called after each.
        runs: of the benchmarks, on GPUs.
        precisions: keys of `DTYPES`.
        backend: "triton", "torch", "reference", or "auto", which takes the kernels in 16 bits and PyTorch in float32.

    Raises:
        ValueError: for the reference under autocast, whose casts are not recorded.
    """
    if backend == "reference" and "autocast" in precisions:
        raise ValueError("precisions: the reference is not recorded under autocast")
    by_host = None if backend in WITHOUT_KERNELS else host.measured(config.get("depth", 3), training)
    made = []
    for name, batch, precision in itertools.product(devices, batches, precisions):
        runs_on = _chosen(precision) if backend == "auto" else backend
        one = _forecast(config, name, batch, training, cache, jobs, progress, by_host, precision, runs_on)
        chosen = not config and runs_on == _chosen(precision)
        found = measured.latest(runs, DEVICES[name], batch, training, precision) if chosen else None
        off = None if found is None else one["seconds"] / found["seconds"] - 1
        made.append({**one, "measured": found, "off_by": off})
    return made


def _chosen(precision: str) -> str:
    """What "auto" takes on a GPU."""
    return "torch" if DTYPES[precision] == torch.float32 else "triton"


def _forecast(
    config: Mapping[str, Any],
    name: str,
    batch: int,
    training: bool,
    cache: Path,
    jobs: int,
    progress: Progress,
    by_host: host.Host | None,
    precision: str,
    backend: str,
) -> dict[str, Any]:
    device = DEVICES[name]
    dtype, tf32 = DTYPES[precision], precision == "tf32"
    residual = torch.float32 if precision == "autocast" else None
    found = steps(config, dtype, device.arch, batch, training, backend=backend, tf32=tf32, residual=residual)
    launches = {place: step for place, step in enumerate(found) if isinstance(step, Launch)}
    works = work.of_launches(launches, device.arch, cache, jobs, progress)
    counts = executed.of_kernels(executed.read(), str(dtype).removeprefix("torch."), device.arch, wide=True)
    works = {place: work.with_counts(works[place], counts.get(launch.name)) for place, launch in launches.items()}
    lines = times.lines(found, works, device, FIT)
    on_gpu, asked = times.total(lines), counted(found)
    on_host = None if by_host is None or backend in WITHOUT_KERNELS else by_host.of(asked["kernels"])
    seconds = max(on_gpu, on_host or 0.0)
    return {
        "device": device.name,
        "batch": batch,
        "training": training,
        "precision": precision,
        "backend": backend,
        "kernels": asked["kernels"],
        "operations": asked["operations"],
        "gpu_seconds": on_gpu,
        "host_seconds": on_host,
        "seconds": seconds,
        "per_second": batch / on_gpu,
        "per_second_range": (batch / on_gpu * (1 - ERROR), batch / on_gpu * (1 + ERROR)),
        "lines": [asdict(line) for line in lines],
    }


def as_json(one: Checked) -> dict[str, Any]:
    """A published figure beside its forecast, as plain values."""
    figure = {key: getattr(one.published, key) for key in ("name", "device", "figure", "unit", "source")}
    return {**figure, "forecast": one.forecast, "error": one.error, "ruled by": one.bound}
