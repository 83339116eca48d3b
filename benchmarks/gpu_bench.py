"""The benchmarks of `pytest benchmarks/` on this device, without a network and within the stage's time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare import ROOT
from benchmarks.timing import Budget

RESERVE = 30.0
"""Seconds of the stage for the ceilings, the kernels and the page at the end."""

PLUGINS = ("-p", "benchmarks.bare_plugin", "-p", "no:cacheprovider")
TINY = "block or largest"
"""Which benchmarks a rehearsal runs."""


def measure(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Run the benchmarks and return what they stored; `passed` tells whether no test failed."""
    folder = out / "bench"
    results = folder / "results.json"
    results.unlink(missing_ok=True)
    options = ["--benchmark-only", "--device", device.type, "--audio", "noise", "--out", str(folder.resolve())]
    options += ["--smoke", "-k", TINY] if tiny else ["--quick", "--seconds", str(budget.left - RESERVE)]
    command = [sys.executable, *_isolation(), "-m", "pytest", "benchmarks/", "-q", *PLUGINS, *options]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if not results.exists():
        raise RuntimeError(f"pytest ended with {code} and stored nothing; see {folder / 'log'}")
    run = json.loads(results.read_text(encoding="utf-8"))
    budget.left_out += [f"{entry['case']}: {entry['model']}: {entry['reason']}" for entry in run["not_run"]]
    return {"run": run, "passed": code == 0}


def _isolation() -> list[str]:
    """The flag of this process that keeps installed packages' `.pth` files unread, where it was given."""
    return ["-S"] if sys.flags.no_site else []


def summary(results: dict[str, Any]) -> str:
    """To read."""
    lines = []
    for entry in results["run"]["results"]:
        ratio = "" if entry["ratio"] is None else f"  {entry['ratio']:6.2f} x the time of SepTr"
        lines.append(f"{entry['case']:60} {entry['model']:42} {entry['seconds'] * 1e3:10.3f} ms{ratio}")
    return "\n".join(lines)
