"""Every pass forward and backward, and a model, for a tool to watch: a program, run as a module."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu.bare import prepare

DTYPES = ("bfloat16", "float32")
AT_THE_END = "passes ran, and the model"
"""What is written when all went well."""

SIZES = {"input_size": (5, 137), "depth": 1, "heads": 2, "dim_head": 32, "dim": 32, "mlp_dim": 40}
"""Along the width more than one of the largest tiles, and few tokens: a tool takes a hundred times as long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the step; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.checks.sanitized_step", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--tiny", action="store_true", help="few tokens, for the interpreter")
    parser.add_argument(
        "--jobs", type=int, default=0, help="kernels compiled at a time before any runs; default: none is"
    )
    options = parser.parse_args(arguments)
    prepare(options.device)
    passes = step(options.device, options.dtype, options.tiny, options.jobs)
    sys.stdout.write(f"{passes} {AT_THE_END}\n")
    return 0


def step(device_name: str, dtype_name: str, tiny: bool, jobs: int = 0) -> int:
    """Run the passes in either form of their attention, and a training step of a model; how many passes ran."""
    import torch
    import torch.nn.functional as F
    from septr_fast.kernels import launch
    from torch import Tensor

    from benchmarks.gpu.checks.compiling import compile_calls
    from benchmarks.suite.shapes import FEW_TOKENS
    from septr_fast import SepTr
    from septr_fast.tuning.tuner import FUSED
    from septr_fast.tuning.workloads import workloads

    sizes: dict[str, Any] = FEW_TOKENS if tiny else SIZES
    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    torch.manual_seed(0)
    passes = list(workloads(sizes, [dtype], 2, device))
    forms: list[dict[str, launch.Config]] = [{}] if tiny else [{}, FUSED]
    model = SepTr(**sizes, backend="triton").to(device, dtype)
    x = torch.randn(2, 1, *sizes["input_size"]).to(device, dtype)
    labels = torch.zeros(2, dtype=torch.long, device=device)

    def run(form: dict[str, launch.Config]) -> None:
        with launch.untuned(), launch.override(form):
            for workload in passes:
                workload.run()

    def train() -> None:
        loss: Tensor = F.cross_entropy(model(x).float(), labels)
        loss.backward()

    calls: list[Callable[[], None]] = [*(functools.partial(run, form) for form in forms), train]
    if jobs:
        compile_calls(calls, device, jobs)
        model.zero_grad()
    for call in calls:
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(forms) * len(passes)


if __name__ == "__main__":
    sys.exit(main())
