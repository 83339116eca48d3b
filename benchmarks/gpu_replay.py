"""The tests of the kernels, compiled: all that take a device, in several processes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes
from benchmarks.bare import ROOT
from benchmarks.timing import Budget

TINY_TESTS = ["tests/test_kernel_normalization.py", "-k", "no_tokens or too_many_features"]


def replay(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Run the tests that take a device, and count how they end.

    Returns:
        `counts` by outcome, `failures` with `test` and `reason`, and `unfinished`: what became of processes that
        did not come to their end.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_*.py"))}
    files = [str(path.relative_to(ROOT)) for path, text in texts.items() if "device: torch.device" in text]
    parts = 1 if tiny else processes.count()
    started = []
    for part in range(parts):
        outcomes = out / f"replay-{part}.jsonl"
        outcomes.unlink(missing_ok=True)
        options = ["--device", device.type, "--part", f"{part}/{parts}", "--outcomes", str(outcomes.resolve())]
        command = ["-m", "pytest", "-q", "-p", "benchmarks.replay", "-p", "no:cacheprovider", *options]
        command += TINY_TESTS if tiny else files
        started.append((processes.start(command, out / f"replay-{part}.log", device), outcomes))
    codes = [processes.finish(process, budget.left) for process, _ in started]
    found = [json.loads(line) for _, path in started if path.exists() for line in path.read_text().splitlines()]
    unfinished = [f"part {part}: {_ending(code)}" for part, code in enumerate(codes) if code not in (0, 1)]
    failures = [entry for entry in found if entry["outcome"] == "failed"]
    return {"counts": Counter(entry["outcome"] for entry in found), "failures": failures, "unfinished": unfinished}


def _ending(code: int | None) -> str:
    return "out of time" if code is None else f"pytest ended with status {code}"
