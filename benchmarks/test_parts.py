"""Parts of the model: attention along each axis, one transformer, one block."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.suite.cases import PARTS, Case
from benchmarks.suite.runner import Runner

GROUPS = PARTS


@pytest.mark.benchmark(warmup=False)
def test_part(benchmark: Any, case: Case, model_name: str, runner: Runner) -> None:
    runner.run(benchmark, case, model_name)
