"""How time and memory grow with the height, the width, the depth and the batch."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.suite.cases import GROWTH, Case
from benchmarks.suite.runner import Runner

GROUPS = GROWTH


@pytest.mark.benchmark(warmup=False)
def test_growth(benchmark: Any, case: Case, model_name: str, runner: Runner) -> None:
    runner.run(benchmark, case, model_name)
