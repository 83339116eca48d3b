"""`compute-sanitizer` in the stage `check`: a script stands for it, and prints what it would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from septr_fast.kernels import launch

from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import figures as gpu_figures
from benchmarks.gpu.checks import sanitize as gpu_sanitize
from benchmarks.gpu.checks import sanitized_step
from benchmarks.measuring.timing import Budget
from benchmarks.suite.shapes import FEW_TOKENS
from septr_fast.tuning.workloads import workloads

CPU = torch.device("cpu")

SCRIPT = """#!/bin/sh
tool=$2
[ "$1 $3 $4 $5 $6" = "--tool --target-processes application-only --print-limit 20" ] || exit 99
shift 6
echo "========= COMPUTE-SANITIZER"
{body}
"""
CLEAN = """"$@"
if [ $tool = racecheck ]
then echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
else echo "========= ERROR SUMMARY: 0 errors"
fi"""
ERRORS = """echo "========= Invalid __global__ read of size 4 bytes"
echo "=========     at mlp_fwd_kernel+0x1a0 in mlp.py:146"
"$@"
if [ $tool = racecheck ]
then echo "========= RACECHECK SUMMARY: 4 hazards displayed (3 errors, 1 warning)"
else
  echo "========= ERROR SUMMARY: 3 errors"
  echo "========= ERROR SUMMARY: 2 errors were not printed. Use --print-limit option to see them"
fi"""


def executable(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)
    return file


def watch(
    body: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    step: str = f"echo 9 {sanitized_step.AT_THE_END}",
    seconds: float = 60,
) -> tuple[list[dict[str, Any]], list[str]]:
    """What `sanitize` finds with a program that does `body`, and what it leaves out; `step` stands for Python."""
    programs = tmp_path / "programs"
    programs.mkdir()
    executable(programs / gpu_sanitize.NAME, SCRIPT.format(body=body))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", f"#!/bin/sh\n{step}\n")))
    budget = Budget(seconds)
    return gpu_sanitize.sanitize(CPU, True, budget, tmp_path), budget.left_out


def test_a_clean_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, left_out = watch(CLEAN, monkeypatch, tmp_path)
    expected = [(tool, dtype) for dtype in sanitized_step.DTYPES for tool in gpu_sanitize.TOOLS]
    assert [(entry["tool"], entry["dtype"]) for entry in found] == expected
    assert all((entry["errors"], entry["warnings"], entry["problem"]) == (0, 0, None) for entry in found)
    assert not left_out
    (part,) = gpu_figures.parts({"sanitize": found})
    assert (part.tried, part.wrong, part.faults) == (8, 0, [])


def test_errors_are_counted_and_kernels_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, left_out = watch(ERRORS, monkeypatch, tmp_path)
    assert {(entry["tool"], entry["errors"], entry["warnings"]) for entry in found} == {
        ("memcheck", 3, 0),
        ("racecheck", 3, 1),
        ("initcheck", 3, 0),
        ("synccheck", 3, 0),
    }
    assert not left_out
    told = gpu_figures.faults({"sanitize": found})
    assert "memcheck, bfloat16: 3 errors; kernels named: mlp_fwd_kernel" in told


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('"$@"; kill -SEGV $$', "no summary, status -11"),
        ('"$@"; exit 3', "no summary, status 3"),
        (CLEAN.replace('"$@"', "") + "; exit 1", "the step failed with status 1"),
    ],
    ids=["crash", "no summary", "the step was not run"],
)
def test_what_ends_without_a_result_is_a_fault(
    body: str, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, _ = watch(body, monkeypatch, tmp_path)
    assert [entry["problem"] for entry in found] == [problem] * 8
    assert len(gpu_figures.faults({"sanitize": found})) == 8


def test_a_step_that_fails_unwatched_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, _ = watch(CLEAN, monkeypatch, tmp_path, step="exit 1")
    assert [(entry["tool"], entry["problem"]) for entry in found] == [("no tool", "the step failed with status 1")] * 2


def test_what_hangs_and_what_the_tool_cannot_watch_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hanging = (
        f'if [ $tool = memcheck ]; then sleep 60; elif [ $tool = initcheck ]; then\necho "{gpu_sanitize.UNSUPPORTED}"\n'
    )
    found, left_out = watch(f"{hanging}else {CLEAN}\nfi", monkeypatch, tmp_path, seconds=2)
    assert {entry["tool"] for entry in found} == {"racecheck", "synccheck"}
    assert left_out == [
        f"sanitize: {tool}, {dtype}: {reason}"
        for dtype in sanitized_step.DTYPES
        for tool, reason in (("memcheck", "no time"), ("initcheck", "Device not supported"))
    ]


def test_a_step_out_of_time_is_unfinished_and_not_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def late(runs: list[tuple[str, str]], *_: Any) -> list[dict[str, Any]]:
        return [{"tool": tool, "dtype": dtype, **gpu_sanitize.read(tool, "", None)} for tool, dtype in runs]

    monkeypatch.setattr(gpu_sanitize, "find", lambda: tmp_path)
    monkeypatch.setattr(gpu_sanitize, "_run", late)
    monkeypatch.setitem(gpu_check.PARTS, "sanitize", gpu_check.PARTS["sanitize"]._replace(needs_gpu=False))
    found = gpu_check.measure(CPU, True, Budget(60), tmp_path, ("sanitize",))
    assert found["unfinished"] == [f"sanitize: no tool, {dtype}" for dtype in sanitized_step.DTYPES]
    assert gpu_figures.faults(found) == []
    assert found["passed"] is False


def test_where_it_is_not_installed_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_sanitize, "find", lambda: None)
    budget = Budget(1)
    assert gpu_sanitize.sanitize(CPU, True, budget, tmp_path) == []
    assert budget.left_out == ["sanitize: compute-sanitizer is not installed"]


def test_it_is_found_in_cudas_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    file = tmp_path / "bin" / gpu_sanitize.NAME
    file.write_text("", encoding="utf-8")
    assert gpu_sanitize.find() != file
    executable(file, "")
    assert gpu_sanitize.find() == file


def test_the_step_runs_every_formulation(device: torch.device) -> None:
    expected = len(list(workloads(FEW_TOKENS, [torch.float32], 2, device)))
    with launch.override(gpu_check.TINY_TILES):
        ran = sanitized_step.step(device.type, "float32", tiny=True)
    assert ran == expected
