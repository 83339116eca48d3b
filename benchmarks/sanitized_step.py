"""`python -m benchmarks.sanitized_step`: every pass forward and backward, and a model, for a tool to watch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.bare import prepare

DTYPES = ("bfloat16", "float32")
AT_THE_END = "passes ran, and the model"
"""What is written when all went well."""

SIZES = {"input_size": (5, 137), "depth": 1, "heads": 2, "dim_head": 32, "dim": 32, "mlp_dim": 40}
"""Along the width more than one of the largest tiles, and few tokens: a tool takes a hundred times as long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the step; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitized_step", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--tiny", action="store_true", help="few tokens, for the interpreter")
    options = parser.parse_args(arguments)
    prepare(options.device)
    passes = step(options.device, options.dtype, options.tiny)
    sys.stdout.write(f"{passes} {AT_THE_END}\n")
    return 0


def step(device_name: str, dtype_name: str, tiny: bool) -> int:
    """Run the passes in either form of their attention, and a training step of a model; how many passes ran."""
    import torch
    import torch.nn.functional as F
    from septr_fast.kernels import launch

    from benchmarks.shapes import FEW_TOKENS
    from septr_fast import SepTr
    from septr_fast.tuner import FUSED
    from septr_fast.workloads import workloads

    sizes: dict[str, Any] = FEW_TOKENS if tiny else SIZES
    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    torch.manual_seed(0)
    passes = 0
    for workload in workloads(sizes, [dtype], 2, device):
        for form in ({},) if tiny else ({}, FUSED):
            with launch.untuned(), launch.override(form):
                workload.run()
            passes += 1
    model = SepTr(**sizes, backend="triton").to(device, dtype)
    x = torch.randn(2, 1, *sizes["input_size"]).to(device, dtype)
    F.cross_entropy(model(x).float(), torch.zeros(2, dtype=torch.long, device=device)).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return passes


if __name__ == "__main__":
    sys.exit(main())
