"""The stored cases of the corpus that tries to break the package (`tests/trust`), compiled, in several processes.

Those of the levels on Triton: operators, passes and models. For every second operator and pass the tiles are small, so
that the few tokens of a case take several; for the others they are those of the tables.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import processes
from benchmarks.gpu.bare import prepare
from benchmarks.measuring.timing import Budget

LEVELS = ("operators on Triton", "passes on Triton", "models on Triton")
"""Of `trust.parts.fuzz`."""

GRACE = 20.0
"""Seconds that the last case of a process may take."""

Note = Callable[[dict[str, Any]], None]


class Trial(NamedTuple):
    """A case to try.

    Attributes:
        level: of `trust.parts.fuzz`.
        case: of that level.
        judge: raises where the case is wrong.
    """

    level: str
    case: Any
    judge: Callable[[Any], bool]


def corpus(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Check the stored cases, until the time is up; for how many there was none is noted.

    Returns:
        How many are `stored`, the `cases` that were right by level, what was `wrong`, and `unfinished`: what became of
        processes that did not come to their end.
    """
    parts = 1 if tiny else processes.count()
    started = []
    for part in range(parts):
        outcomes = out / f"corpus-{part}.jsonl"
        outcomes.unlink(missing_ok=True)
        options = ["--device", device.type, "--part", str(part), "--parts", str(parts), "--most", "3" if tiny else "0"]
        options += ["--seconds", f"{max(0.0, budget.left - GRACE):.1f}", "--outcomes", str(outcomes.resolve())]
        command = ["-m", "benchmarks.gpu.checks.corpus", *options]
        started.append((processes.start(command, out / f"corpus-{part}.log", device), outcomes))
    codes = [processes.finish(process, budget.left) for process, _ in started]
    noted = [processes.lines(path) for _, path in started]
    for part, (code, lines) in enumerate(zip(codes, noted, strict=True)):
        chosen, done = sum(line.get("chosen", 0) for line in lines), sum("level" in line for line in lines)
        if code is None or (code == 0 and done < chosen):
            missing = f"{chosen - done} of {chosen}" if chosen else "all"
            budget.cut(f"corpus: {missing} cases of part {part} of {parts}")
    found = [line for lines in noted for line in lines if "level" in line]
    return {
        "stored": sum(line.get("chosen", 0) for lines in noted for line in lines),
        "cases": dict(Counter(entry["level"] for entry in found if entry["fault"] is None)),
        "wrong": [f"{entry['level']}: {entry['fault']}" for entry in found if entry["fault"] is not None],
        "unfinished": [f"part {part}: {_ending(code)}" for part, code in enumerate(codes) if code],
    }


def main(arguments: list[str] | None = None) -> int:
    """One of the processes: append a line of JSON that tells how many cases it has, and one for every case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.checks.corpus", description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--part", type=int, required=True, help="the first case")
    parser.add_argument("--parts", type=int, required=True, help="from one case to the next")
    parser.add_argument("--seconds", type=float, required=True, help="after which no case is begun")
    parser.add_argument("--most", type=int, default=0, help="cases at most; 0 for all")
    parser.add_argument("--outcomes", type=Path, required=True)
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    prepare(options.device)
    chosen = trials(options.part, options.parts)[: options.most or None]
    with torch.device(options.device), options.outcomes.open("a", encoding="utf-8", buffering=1) as file:

        def note(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")

        note({"chosen": len(chosen)})
        return check(chosen, end, note)


def trials(part: int = 0, parts: int = 1) -> list[Trial]:
    """One of several parts of the stored cases, its levels mixed."""
    stored: Any = importlib.import_module("trust.corpus")
    operators: Any = importlib.import_module("trust.fuzzing.operators")
    models: Any = importlib.import_module("trust.fuzzing.models")
    judges = {
        "operators": operators.check_operator,
        "passes": operators.check_triton_pass,
        "models": models.check_model,
    }
    cases = stored.read()
    found = []
    for level in LEVELS:
        judge = judges[level.partition(" ")[0]]
        for index, case in list(enumerate(cases[level]))[part::parts]:
            of_tables = index // parts % 2 == 1 and level != "models on Triton"
            trial = Trial(level, case, partial(judge, tiles={}) if of_tables else judge)
            found.append((index / len(cases[level]), trial))
    return [trial for _, trial in sorted(found, key=lambda placed: placed[0])]


def check(chosen: list[Trial], end: float, note: Note) -> int:
    """Check cases until the time is `end`; the exit status."""
    for trial in chosen:
        if time.monotonic() > end:
            return 0
        sys.stderr.write(f"{trial.case}\n")
        fault = None
        try:
            trial.judge(trial.case)
        except Exception as error:
            fault = f"{trial.case}: {type(error).__name__}: {error}"
        note({"level": trial.level, "fault": fault})
        if fault is not None and processes.is_lost(torch.get_default_device()):
            return processes.LOST
    return 0


def _ending(code: int) -> str:
    return "the device is lost" if code == processes.LOST else f"ended with status {code}"


if __name__ == "__main__":
    sys.exit(main())
