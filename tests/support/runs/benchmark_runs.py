"""Cases for the tests of the benchmarks, and what runs them without timing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.measuring.timing import Budget
from benchmarks.suite import cases, shapes
from benchmarks.suite.cases import Case
from benchmarks.suite.data import Source
from benchmarks.suite.runner import Runner

CPU = torch.device("cpu")
FORWARD = Case(cases.FORWARD, "tiny", shapes.SMALL["benchmark"], 3, rounds=2)
STEP = replace(FORWARD, group=cases.STEP)
CLASSES = 35


class Timer:
    """Stands in for pytest-benchmark's fixture and notes what it times."""

    def __init__(self) -> None:
        self.timed = 0
        self.extra_info: dict[str, Any] = {}
        self.group = ""

    def pedantic(self, function: Any, setup: Any, rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds):
            arguments, _ = setup()
            function(*arguments)
            self.timed += 1


def runner(seconds: float = 1000.0, limit: int = 4 << 20) -> Runner:
    return Runner("smoke", CPU, Source(None, CPU), Budget(seconds), limit, lambda what: None)
