"""Launch configurations measured within a stage's time; the library reads them from then on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring.timing import Budget
from septr_fast.passes import backend
from septr_fast.passes.triton import tuned
from septr_fast.tuning import tune

TINY = {"kernels": ["class_key_bwd"], "dtypes": ["float32"], "head_dims": [16], "lengths": [2], "heads": 1}


def measure(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Tune for the default model in bfloat16; write the table to `out` and, of a GPU, to the cache folder."""
    options: dict[str, Any] = {**TINY, "batch": 1, "most": 1} if tiny else {"jobs": os.cpu_count()}
    with (out / "tune.log").open("w", encoding="utf-8") as log:
        found, about = tune.tune(
            device, budget=budget.left, report=lambda text: print(text, file=log, flush=True), **options
        )
    files = [out / "tuned.json", *([tuned.path(backend.device_name(device))] if device.type == "cuda" else [])]
    for file in files:
        tune.store(file, found, about)
    budget.left_out += [f"{name}: no time" for name in about["left_out"]]
    return {
        "files": [str(file) for file in files],
        "found": [{**one.row(), "refused": one.refused} for one in found],
        "text": tune.summary(found, about),
    }


def summary(results: dict[str, Any]) -> str:
    """To read."""
    return str(results["text"])
