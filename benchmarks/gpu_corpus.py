"""Drawn cases of the corpus that tries to break the package (`tests/trust`), compiled, in several processes.

Each draws cases of operators and of passes from seeds of its own until its time is up. With every second seed the
tiles are small, so that the few tokens of a case take several; with the others they are those of the tables.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes
from benchmarks.bare import prepare
from benchmarks.timing import Budget

LEVELS = ("operators on Triton", "passes on Triton")
"""Of `trust.fuzz`."""

CASES = 25
"""From one seed."""

GRACE = 20.0
"""Seconds that the last case of a process may take."""


def corpus(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Check drawn cases until the time is up.

    Returns:
        `cases` by level, what was `wrong`, and `unfinished`: what became of processes that did not come to their end.
    """
    if importlib.util.find_spec("hypothesis") is None:
        budget.left_out.append("corpus: hypothesis is not installed")
        return {"cases": {}, "wrong": [], "unfinished": []}
    parts = 1 if tiny else processes.count()
    started = []
    for part in range(parts):
        outcomes = out / f"corpus-{part}.jsonl"
        outcomes.unlink(missing_ok=True)
        options = ["--device", device.type, "--part", str(part), "--parts", str(parts), "--most", "1" if tiny else "0"]
        options += ["--seconds", str(budget.left - GRACE), "--outcomes", str(outcomes.resolve())]
        command = ["-m", "benchmarks.gpu_corpus", *options]
        started.append((processes.start(command, out / f"corpus-{part}.log", device), outcomes))
    codes = [processes.finish(process, budget.left) for process, _ in started]
    found = [json.loads(line) for _, path in started if path.exists() for line in path.read_text().splitlines()]
    if not found:
        budget.left_out.append("corpus: no time for a case")
    late = [part for part, code in enumerate(codes) if code is None]
    budget.left_out += [f"corpus: the last case of part {part}: no time" for part in late]
    return {
        "cases": dict(Counter(entry["level"] for entry in found if entry["fault"] is None)),
        "wrong": [f"{entry['level']}: {entry['fault']}" for entry in found if entry["fault"] is not None],
        "unfinished": [f"part {part}: ended with status {code}" for part, code in enumerate(codes) if code],
    }


def main(arguments: list[str] | None = None) -> int:
    """One of the processes: append a line of JSON for every case that is right, and one for a fault, which ends it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_corpus", description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--part", type=int, required=True, help="the first seed")
    parser.add_argument("--parts", type=int, required=True, help="from one seed to the next")
    parser.add_argument("--seconds", type=float, required=True, help="after which no case is begun")
    parser.add_argument("--most", type=int, default=0, help="cases of a level; 0 for as many as there is time for")
    parser.add_argument("--outcomes", type=Path, required=True)
    options = parser.parse_args(arguments)
    prepare(options.device)
    end, seed = time.monotonic() + options.seconds, options.part
    with torch.device(options.device), options.outcomes.open("a", encoding="utf-8", buffering=1) as file:

        def note(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")

        while time.monotonic() < end:
            faults = [check(level, seed, options.most or CASES, end, note) for level in LEVELS]
            if any(faults) or options.most:
                return 0
            seed += options.parts
    return 0


def check(name: str, seed: int, count: int, end: float, note: Callable[[dict[str, Any]], None]) -> bool:
    """Check up to `count` cases of a level from one seed, until the time is `end`; whether one of them is wrong."""
    fuzz: Any = importlib.import_module("trust.fuzz")
    level = fuzz.LEVELS[name]
    judge = partial(level.check, tiles={}) if seed % 2 else level.check

    def judge_in_time(case: Any) -> bool:
        if time.monotonic() > end:
            return False
        sys.stderr.write(f"{case}\n")
        again = bool(judge(case))
        note({"level": name, "fault": None})
        return again

    judged = replace(level, check=judge_in_time)
    _, fault = fuzz.search(judged, seed, count, Counter(), lambda more: None, shrinking=False)
    if fault is not None:
        note({"level": name, "fault": fault})
    return fault is not None


if __name__ == "__main__":
    sys.exit(main())
