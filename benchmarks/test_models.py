"""The whole model: forward passes, also beside other processes, and training steps."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.suite.cases import CIRCUMSTANCES, FORWARD, STEP, Case
from benchmarks.suite.runner import Runner

GROUPS = (FORWARD, STEP, *CIRCUMSTANCES)


@pytest.mark.benchmark(warmup=False)
def test_model(benchmark: Any, case: Case, model_name: str, runner: Runner) -> None:
    runner.run(benchmark, case, model_name)
