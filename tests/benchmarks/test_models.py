"""Which backend the measured models take on a device, and what work that makes of a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.runs.benchmark_runs import CLASSES, CPU, FORWARD

from benchmarks.suite import cases, models
from benchmarks.suite.cases import OURS, RECOMPUTING, Case

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda")


def test_work_on_kernels_counts_what_they_do_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(cases.STEP, "default", {}, 2, "bfloat16")
    assert models.flops(RECOMPUTING, case, CLASSES, CPU) > models.flops(OURS, case, CLASSES, CPU)
    monkeypatch.setattr(models, "runs_on_triton", lambda case, device: True)
    stored = json.loads((ROOT / "tests" / "network" / "counts.json").read_text(encoding="utf-8"))
    assert models.flops(OURS, case, CLASSES, CPU) == stored["default"]["triton, bfloat16, sm_90"]["step, FLOPs"]
    assert models.flops(cases.ON_PYTORCH, case, CLASSES, CPU) == models.least_flops(OURS, case, CLASSES)
    assert models.why_not(RECOMPUTING, case, CPU) == "it is SepTr here"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "autocast"])
def test_what_is_septr_on_a_gpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels in 16 bits, and PyTorch in float32, beside which its kernels are measured all the same."""
    monkeypatch.setattr(models.backend, "why_not_triton", lambda name, device: None)
    case, device = replace(FORWARD, precision=precision), CUDA
    reasons = {name: models.why_not(name, case, device) for name in (cases.ON_TRITON, cases.ON_PYTORCH)}
    other = cases.ON_TRITON if precision in ("float32", "tf32") else cases.ON_PYTORCH
    assert [name for name, reason in reasons.items() if reason is None] == [other]
