"""Triton's own launcher, built as at a user's first launch, on a small library in the place of the driver's.

What the driver is asked for is the kernel, its grid, threads and shared memory, and each parameter byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from septr_fast.kernels.tables import TABLES
from support.execution import trials

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler, as a first launch does")
ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    *(f"{form}, bfloat16, sm_90" for form in ("class-only", "low-rank", "merged", "merged, forward")),
    "merged, autocast along the height, sm_90",
)
"""Trials in which every kernel is launched."""
NO_KERNELS = {"chunk", "attention_form"}


def launched(names: Sequence[str], module: str = "support.driver.launching") -> list[dict[str, Any]]:
    """What comes of every launch of trials, in a process in which Triton does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/tests:{ROOT}"}
    command = [sys.executable, "-m", module, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_is_launched_as_it_is_recorded() -> None:
    *sound, planted = launched([*SHORT, f"{SHORT[0]}/planted"])
    assert {one["kernel"]: one["wrong"] for one in sound if one["wrong"]} == {}
    launches = {one["kernel"] for one in sound}
    assert launches >= {row.kernel.removesuffix("_direct") for row in TABLES} - NO_KERNELS
    grid, values = planted["wrong"]
    assert "grid: expected" in grid
    assert "values: expected" in values


@pytest.mark.parametrize("arch", [80, 90])
def test_in_every_form_and_dtype(arch: int, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--long"):
        pytest.skip("compiles hundreds of kernels: --long")
    found = launched([name for name, trial in trials.TRIALS.items() if trial.arch == arch])
    assert [line for one in found for line in one["wrong"]] == []
    assert len(found) > 200


def test_the_trial_of_a_first_launch(request: pytest.FixtureRequest) -> None:
    """What it takes of the host is told; how long that is, no test may ask."""
    if not request.config.getoption("--long"):
        pytest.skip("compiles the kernels of three dtypes: --long")
    found = launched((), module="support.driver.trial_times")
    assert [one["dtype"] for one in found] == ["torch.bfloat16", "torch.float16", "torch.float32"]
    for one in found:
        assert one["launches"] > 40
        assert one["results"] > 60
