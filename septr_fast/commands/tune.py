"""`septr-fast tune`: measure launch configurations on this GPU, and keep what is faster than the shipped."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from septr_fast.passes import backend
from septr_fast.passes.triton import tuned
from septr_fast.tuning.tune import DTYPES, KERNELS, store, summary, tune, why_not

HELP = "measure launch configurations on this GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS, metavar="NAME", dest="kernels")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"], dest="dtypes")
    parser.add_argument(
        "--head-dim", nargs="+", type=int, default=[256], dest="head_dims", help="of tokens and MLP too"
    )
    parser.add_argument("--length", nargs="+", type=int, default=[128], dest="lengths", help="of both axes")
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2, help="spectrograms that kernels are timed on")
    parser.add_argument("--device", default="cuda", help="default: the current CUDA device")
    parser.add_argument("--out", type=Path, help="default: a file in the user's cache folder, which the library reads")
    parser.add_argument(
        "--budget", type=float, default=math.inf, metavar="SECONDS", help="start nothing new after that"
    )
    parser.add_argument("--most", type=int, default=1000, help="candidates of a kernel")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="kernels compiled at a time")


def run(device: str, out: Path | None, **options: Any) -> int:
    """Tune, write the table and return the exit status: 2 where nothing can be measured.

    Args:
        device: a name that PyTorch knows.
        out: the file to write; None for that which the library reads.
        options: those of `tune`.
    """
    chosen = torch.device(device)
    reason = why_not(chosen)
    if reason is not None:
        sys.stderr.write(f"septr-fast tune: {reason}\n")
        return 2
    if chosen.type == "cuda":
        chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
    found, about = tune(chosen, report=lambda text: sys.stderr.write(f"{text}\n"), **options)
    file = out or tuned.path(backend.device_name(chosen))
    store(file, found, about)
    sys.stdout.write(f"{summary(found, about)}\n{file}\n")
    return 0
