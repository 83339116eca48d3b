"""Launch configurations measured on this GPU, one kernel after the other, and the table of what is faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from septr_fast.kernels import launch
from septr_fast.kernels.tables import TABLES
from septr_fast.passes import backend
from septr_fast.passes.backend import versions
from septr_fast.passes.triton import tuned

if TYPE_CHECKING:
    from septr_fast.tuning.tuner import Tuned

KERNELS = tuple(dict.fromkeys(row.kernel for row in TABLES))
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LARGE = 8
"""How many times the samples of other workloads the size of a chunk is measured on."""


def why_not(device: torch.device) -> str | None:
    """What keeps configurations from being measured on `device`; None if nothing does."""
    if backend.is_to_interpret():
        return "TRITON_INTERPRET=1 is set: times would be those of Triton's interpreter; unset it"
    if device.type != "cuda":
        return f"configurations are measured on a CUDA device, not on {device}"
    return backend.why_not_triton("axis_pass", device)


def tune(
    device: torch.device,
    *,
    kernels: Sequence[str] = KERNELS,
    dtypes: Sequence[str] = ("bfloat16",),
    head_dims: Sequence[int] = (256,),
    lengths: Sequence[int] = (128,),
    heads: int = 5,
    batch: int = 2,
    budget: float = math.inf,
    most: int = 1000,
    jobs: int | None = None,
    report: Callable[[str], object] = lambda text: None,
) -> tuple[list[Tuned], dict[str, Any]]:
    """Measure configurations at the shapes of models with these sizes.

    Args:
        device: a CUDA device with its index, or the CPU under the interpreter.
        kernels: names out of the tables.
        dtypes: names out of `DTYPES`.
        head_dims: features of heads, of tokens and of the MLP's hidden layer.
        lengths: of both axes.
        heads: number of heads.
        batch: spectrograms that kernels are timed on.
        budget: seconds after which nothing new is started.
        most: candidates of a kernel.
        jobs: kernels compiled at a time.
        report: told of every candidate in a sentence.

    Returns:
        What was found, and what to stamp the table with.
    """
    from septr_fast.tuning.tuner import Tuner
    from septr_fast.tuning.workloads import workloads

    start, interpreted = time.monotonic(), device.type != "cuda"
    configs = [
        {"input_size": (length, length), "heads": heads, "dim_head": dim, "dim": dim, "mlp_dim": dim}
        for dim in head_dims
        for length in lengths
    ]
    torch.manual_seed(0)
    precisions = [DTYPES[name] for name in dtypes]
    small, large = (
        [workload for config in configs for workload in workloads(config, precisions, samples, device)]
        for samples in (batch, batch * (1 if interpreted else LARGE))
    )
    found: list[Tuned] = []
    with launch.untuned(), torch.cuda.device(-1 if interpreted else device):
        tuner = Tuner(
            small,
            large,
            kernels,
            device,
            seconds_interpreted if interpreted else seconds_on_gpu,
            deadline=start + budget,
            jobs=0 if interpreted else jobs or 1,
            most=most,
            report=report,
        )
        choices = tuner.choices()
        while choices and time.monotonic() < start + budget:
            left = start + budget - time.monotonic()
            found.append(tuner.tune(choices.pop(0), time.monotonic() + 2 * left / (len(choices) + 1)))
    about = {
        **tuned.made_for(backend.device_name(device), backend.capability(device)),
        "interpreted": interpreted,
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "workloads": [workload.name for workload in small],
        "seconds": round(time.monotonic() - start, 1),
        "left_out": [choice.name for choice in choices],
    }
    return found, about


def store(file: Path, found: Sequence[Tuned], about: dict[str, Any]) -> None:
    """Write those that are faster than what is shipped to `file`."""
    faster = [one.row() for one in found if one.best != one.shipped]
    tuned.write(file, faster, {**about, "as_shipped": [one.row() for one in found if one.best == one.shipped]})


def summary(found: Sequence[Tuned], about: dict[str, Any]) -> str:
    """A line for each choice, to read."""
    lines = [
        f"{one.choice.name}, {one.choice.itemsize} bytes, {one.choice.width} features: "
        f"{one.shipped_seconds * 1e6:.1f} µs shipped, {one.seconds * 1e6:.1f} tuned "
        f"({one.shipped_seconds / max(one.seconds, 1e-12):.2f} x), {one.tried} tried, {len(one.refused)} refused"
        for one in found
    ]
    left_out = ", ".join(dict.fromkeys(about["left_out"]))
    return "\n".join([*lines, *([f"left out for want of time: {left_out}"] if left_out else [])])


def seconds_on_gpu(function: Callable[[], Any], more_than_kernels: bool) -> float:
    """Median time on the current device; kernels alone are replayed as a graph, which leaves the host out."""
    from triton.testing import do_bench, do_bench_cudagraph

    if more_than_kernels:
        return float(do_bench(function, return_mode="median")) / 1e3
    return float(do_bench_cudagraph(function, rep=5, return_mode="median")) / 1e3


def seconds_interpreted(function: Callable[[], Any], more_than_kernels: bool) -> float:
    """Time of one call in the interpreter, which says nothing of a GPU."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
