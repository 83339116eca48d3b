"""`compute-sanitizer` over a step of every formulation: accesses out of bounds, races, uninitialised reads, barriers.

Every tool runs the step in a process of its own, for each dtype, all at the same time. The kernels are compiled before,
in a process that is not watched; every tensor has an allocation of its own, so that an access beside it is seen.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import processes
from benchmarks.gpu.checks.sanitized_step import AT_THE_END, DTYPES
from benchmarks.measuring.timing import Budget

NAME = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
UNWATCHED = "no tool"
OPTIONS = ("--target-processes", "application-only", "--print-limit", "20")
VARIABLES = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

OUT_OF_TIME = "no time"
UNSUPPORTED = "Device not supported"
"""What the tool says of a machine that it cannot watch."""

_ERRORS = re.compile(r"^=+ ERROR SUMMARY: (\d+) errors?\s*$", re.MULTILINE)
_HAZARDS = re.compile(r"^=+ RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)", re.MULTILINE)
_KERNEL = re.compile(r"^=+ .*?\b([a-z]\w*_kernel)\b", re.MULTILINE)


def sanitize(device: torch.device, tiny: bool, budget: Budget, out: Path) -> list[dict[str, Any]]:
    """Run the step under each tool; under none where it is not installed, which is noted.

    Returns:
        For each `tool` and `dtype` the number of `errors` and of `warnings` by its summary, the `kernels` that its
        report names, and the `problem` where there is no summary or the step failed; the end of the `report` where
        something is wrong. Whole reports are in `out`.
    """
    program = find()
    if program is None:
        budget.left_out.append(f"sanitize: {NAME} is not installed")
        return []
    unwatched = _run([(UNWATCHED, dtype) for dtype in DTYPES], None, device, tiny, budget.part(0.4), out)
    found = [entry for entry in unwatched if entry["problem"]]
    if not found:
        found = _run([(tool, dtype) for dtype in DTYPES for tool in TOOLS], program, device, tiny, budget, out)
    for entry in found:
        what = f"sanitize: {entry['tool']}, {entry['dtype']}"
        if entry["problem"] == OUT_OF_TIME:
            budget.cut(what)
        elif entry["problem"] == UNSUPPORTED:
            budget.left_out.append(f"{what}: {UNSUPPORTED}")
    return [entry for entry in found if entry["problem"] not in (OUT_OF_TIME, UNSUPPORTED)]


def find() -> Path | None:
    """The program: on the path, in CUDA's folder, or in a package for Python."""
    on_path = shutil.which(NAME)
    if on_path is not None:
        return Path(on_path)
    return next((file for file in _places() if os.access(file, os.X_OK)), None)


def _places() -> Iterator[Path]:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    yield from (Path(folder) / "bin" / NAME for folder in folders if folder)
    for package, pattern in (("nvidia", f"*/bin/{NAME}"), ("triton", f"backends/nvidia/bin/{NAME}")):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            yield from sorted(Path(folder).glob(pattern))


def _run(
    runs: Sequence[tuple[str, str]], program: Path | None, device: torch.device, tiny: bool, budget: Budget, out: Path
) -> list[dict[str, Any]]:
    """Run the step under several tools at the same time, without any where there is no `program`."""
    started = []
    for tool, dtype in runs:
        log = out / f"sanitize-{tool.replace(' ', '-')}-{dtype}.log"
        command = ["-m", "benchmarks.gpu.checks.sanitized_step", "--device", device.type, "--dtype", dtype]
        command += ["--tiny"] if tiny else []
        command += [] if program else ["--jobs", str(max(1, processes.count() // len(runs)))]
        prefix = [str(program), "--tool", tool, *OPTIONS] if program else []
        process = processes.start(command, log, device, prefix=prefix, variables=VARIABLES)
        started.append((tool, dtype, process, log))
    found = []
    for tool, dtype, process, log in started:
        code = processes.finish(process, budget.left)
        report = log.read_text(encoding="utf-8", errors="replace")
        entry = {"tool": tool, "dtype": dtype, **read(tool, report, code)}
        found.append({**entry, "report": report[-4000:]} if entry["errors"] or entry["problem"] else entry)
    return found


def read(tool: str, report: str, code: int | None) -> dict[str, Any]:
    """What a report says.

    Args:
        tool: that made it.
        report: all output of the tool and of the step.
        code: exit status; None where the process was ended.
    """
    summary = (_HAZARDS if tool == "racecheck" else _ERRORS).search(report)
    errors, *warnings = map(int, summary.groups()) if summary else (None,)
    named = sorted(set(_KERNEL.findall(report)))
    problem = None
    if code is None:
        problem = OUT_OF_TIME
    elif UNSUPPORTED in report:
        problem = UNSUPPORTED
    elif summary is None and tool != UNWATCHED:
        problem = f"no summary, status {code}"
    elif AT_THE_END not in report:
        problem = f"the step failed with status {code}"
    return {"errors": errors, "warnings": sum(warnings), "kernels": named, "problem": problem}
