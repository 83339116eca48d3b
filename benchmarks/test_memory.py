"""The largest batch whose training step fits a given memory, and how long that step takes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.suite.cases import LARGEST, Case
from benchmarks.suite.runner import Runner

GROUPS = (LARGEST,)


@pytest.mark.benchmark(warmup=False)
def test_largest_batch(benchmark: Any, case: Case, model_name: str, runner: Runner) -> None:
    runner.run(benchmark, case, model_name)
