"""Kernels as Triton compiles them for GPUs, executed on a CPU and compared with plain PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from support.execution.trials import SHORT, TRIALS

ROOT = Path(__file__).resolve().parents[2]
LONG = [name for name in TRIALS if name not in SHORT]
PLANTED = "direct, float16, sm_90/mlp_fwd/{}"
SURVIVOR = "an exponential dropped"
"""What GELU computes for large values is not chosen for small ones."""


def trials(names: Sequence[str]) -> dict[str, Any]:
    """What comes of trials, in a process in which Triton does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/tests:{ROOT}"}
    command = [sys.executable, "-m", "support.execution.trials", *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {found["name"]: found["found"] for found in map(json.loads, done.stdout.splitlines())}


def check(found: dict[str, Any]) -> None:
    assert found["fault"] is None
    assert 0 < found["share"] <= 1, found["worst"]


def test_passes_are_as_good_as_plain_pytorch() -> None:
    found = trials(list(SHORT))
    assert found.keys() == SHORT.keys()
    for one in found.values():
        check(one)
    ampere, hopper, low_rank = found.values()
    backward = {"axis_attention_bwd_query", "axis_attention_bwd_key", "mlp_bwd", "normalize_bwd", "class_query_bwd"}
    for one in (ampere, hopper):
        assert set(one["programs"]) == {"normalize", "axis_attention_fwd", "class_query_fwd", "mlp_fwd_wide", *backward}
    assert "low_rank_fwd" in low_rank["programs"]
    assert ampere["instructions"]["axis_attention_fwd"]["mma"] > 0
    assert all(hopper["instructions"][name]["wgmma"] > 0 for name in ("axis_attention_fwd", "mlp_fwd_wide", "mlp_bwd"))


def test_planted_faults_are_found(request: pytest.FixtureRequest) -> None:
    """One of each kind in the MLP on Hopper's tensor cores; with `--long` in three places."""
    (found,) = trials([PLANTED.format(3 if request.config.getoption("--long") else 1)]).values()
    outcomes = [(fault, outcome) for fault, places in found.items() for outcome in places]
    missed = [fault for fault, outcome in outcomes if outcome == "not found"]
    assert len(found) >= 12
    assert len(missed) <= 1
    assert all(fault.startswith(SURVIVOR) for fault in missed), missed
    assert len({outcome.partition(": ")[2] for _, outcome in outcomes if ": " in outcome}) >= 5


@pytest.mark.parametrize("name", LONG)
def test_all_trials(name: str, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--long"):
        pytest.skip("compiles and executes a pass: --long")
    check(trials([name])[name])
