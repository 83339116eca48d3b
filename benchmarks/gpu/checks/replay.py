"""The tests of the kernels, compiled: all that take a device, in several processes."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import processes
from benchmarks.gpu.bare import ROOT
from benchmarks.measuring.timing import Budget

TINY_TESTS = ["tests/kernels/test_normalization.py", "-k", "no_tokens or too_many_features"]


def replay(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Run the tests that take a device, and count how they end.

    What there was no time for is noted, and which files or tests want a package that is not there.

    Returns:
        How many were `chosen`, `counts` by outcome, `failures` with `test` (or the file that cannot be imported) and
        `reason`, `skipped` with `file` and `reason`, and `unfinished`: what became of processes that broke off.
    """
    parts = 1 if tiny else processes.count()
    started = []
    for part in range(parts):
        outcomes = out / f"replay-{part}.jsonl"
        outcomes.unlink(missing_ok=True)
        options = ["--device", device.type, "--part", f"{part}/{parts}", "--outcomes", str(outcomes.resolve())]
        command = [
            "-m",
            "pytest",
            "-q",
            "-p",
            "benchmarks.gpu.checks.replay_plugin",
            "-p",
            "no:cacheprovider",
            *options,
        ]
        command += ["--continue-on-collection-errors", *(TINY_TESTS if tiny else files())]
        started.append((processes.start(command, out / f"replay-{part}.log", device), outcomes))
    codes = [processes.finish(process, budget.left) for process, _ in started]
    noted = [processes.lines(path) for _, path in started]
    found = summed(noted)
    budget.left_out += [f"replay: {entry['file']}: {entry['reason']}" for entry in found["skipped"]]
    for part, (code, lines) in enumerate(zip(codes, noted, strict=True)):
        if code is None:
            budget.cut(f"replay: {_not_run(lines)} of part {part} of {parts}")
    broken = [f"part {part}: {_ending(code)}" for part, code in enumerate(codes) if code not in (0, 1, None)]
    return {**found, "unfinished": broken}


def files(folder: Path = ROOT / "tests") -> list[str]:
    """The files below the checkout that have tests or fixtures which take the fixture `device`."""
    found = [path for path in sorted(folder.rglob("test_*.py")) if _takes_a_device(path.read_text(encoding="utf-8"))]
    return [str(path.relative_to(folder.parent)) for path in found]


def summed(noted: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """What the processes have noted (see `benchmarks.gpu.checks.replay_plugin`), in one."""
    lines = [line for each in noted for line in each]
    tests = [line for line in lines if "test" in line]
    of_files = {line["file"]: line for line in lines if "file" in line}.values()
    unread = [{"test": line["file"], "reason": line["reason"]} for line in of_files if line["outcome"] == "failed"]
    return {
        "chosen": sum(line.get("chosen", 0) for line in lines),
        "counts": dict(Counter(line["outcome"] for line in tests)),
        "failures": unread + [line for line in tests if line["outcome"] == "failed"],
        "skipped": [
            {"file": line["file"], "reason": line["reason"]} for line in of_files if line["outcome"] == "skipped"
        ],
    }


def _takes_a_device(text: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and _is_given_it(node) for node in ast.parse(text).body)


def _is_given_it(function: ast.FunctionDef) -> bool:
    """Whether pytest hands the fixture to a function: a test or a fixture that is not given devices of its own."""
    named = any(argument.arg == "device" for argument in function.args.args)
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    collected = function.name.startswith("test_") or any("fixture" in decorator for decorator in decorators)
    own = any("parametrize" in decorator and "'device'" in decorator for decorator in decorators)
    return named and collected and not own


def _not_run(lines: Sequence[dict[str, Any]]) -> str:
    """How many of the tests of a process did not run, in words."""
    chosen = [line["chosen"] for line in lines if "chosen" in line]
    if not chosen:
        return "all tests"
    return f"{chosen[0] - len({line['test'] for line in lines if 'test' in line})} of {chosen[0]} tests"


def _ending(code: int | None) -> str:
    return "the device is lost" if code == processes.LOST else f"pytest ended with status {code}"
