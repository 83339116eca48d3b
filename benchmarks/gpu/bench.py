"""The benchmarks of `pytest benchmarks/` on this device, without a network and within the stage's time.

The inputs are noise: clips would need packages that read audio, and a voice to speak them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import processes
from benchmarks.measuring.timing import Budget

RESERVE = 30.0
"""Seconds of the stage for the ceilings, the kernels and the page at the end."""

OVERRUN = 75.0
"""Seconds after the stage's time until the benchmarks are ended, whatever they do."""

EVERY = 5.0
"""Seconds between looks at what they have found."""

PLUGINS = ("-p", "benchmarks.gpu.bare_plugin", "-p", "no:cacheprovider")
TINY = "block or largest"
"""Which benchmarks a rehearsal runs."""


def measure(
    device: torch.device,
    tiny: bool,
    budget: Budget,
    out: Path,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    commit: str | None = None,
) -> dict[str, Any]:
    """Run the benchmarks and return what they stored; `passed` tells whether no test failed.

    Args:
        device: of the models.
        tiny: whether shapes have few tokens.
        budget: of the stage.
        out: folder for all files of the benchmarks.
        keep: told what they have found so far, in the form of the result, whenever there is more.
        commit: for the stamp, where git does not know it.
    """
    folder = out / "bench"
    results, so_far = folder / "results.json", folder / "so-far.json"
    for file in (results, so_far):
        file.unlink(missing_ok=True)
    options = ["--benchmark-only", "--device", device.type, "--audio", "noise", "--out", str(folder.resolve())]
    options += ["--so-far", str(so_far.resolve())]
    options += ["--smoke", "-k", TINY] if tiny else ["--quick", "--seconds", f"{max(0.0, budget.left - RESERVE):.1f}"]
    folder.mkdir(parents=True, exist_ok=True)
    process = processes.start(["-m", "pytest", "benchmarks/", "-q", *PLUGINS, *options], folder / "log", device)
    code, seen = None, ""
    while code is None and budget.left > -OVERRUN:
        code = processes.wait(process, EVERY)
        text = so_far.read_text(encoding="utf-8") if so_far.exists() else ""
        if text != seen:
            keep({"run": json.loads(text)})
            seen = text
    if code is None:
        processes.finish(process, 0.0)
        budget.cut("the last benchmarks, the device's ceilings and the kernels")
    stored = results if results.exists() else so_far
    if not stored.exists():
        raise RuntimeError(f"pytest ended with {code} and stored nothing; {_end(folder / 'log')}")
    run = json.loads(stored.read_text(encoding="utf-8"))
    if commit is not None:
        run["stamp"]["commit"] = commit
    budget.left_out += [f"{entry['case']}: {entry['model']}: {entry['reason']}" for entry in run["not_run"]]
    found = {"run": run, "passed": code == 0}
    return found if code == 0 else {**found, "log": _end(folder / "log")}


def _end(log: Path) -> str:
    """The last of what was printed."""
    return log.read_text(encoding="utf-8", errors="replace")[-4000:]


def summary(results: dict[str, Any]) -> str:
    """To read."""
    lines = []
    for entry in results["run"]["results"]:
        ratio = "" if entry["ratio"] is None else f"  {entry['ratio']:6.2f} x the time of SepTr"
        lines.append(f"{entry['case']:60} {entry['model']:42} {entry['seconds'] * 1e3:10.3f} ms{ratio}")
    return "\n".join([*lines, *([results["log"]] if "log" in results else [])])
