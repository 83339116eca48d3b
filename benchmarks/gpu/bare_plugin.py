"""A pytest plugin that lets the benchmarks run from a checkout that is not installed, and keeps what they find."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.bare import make_importable

make_importable()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("septr_fast")
    group.addoption("--so-far", type=Path, help="file that gets all results after every benchmark")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Store what the session has found, but for what is measured at its end."""
    file, runner = item.config.getoption("--so-far"), getattr(item, "funcargs", {}).get("runner")
    if file is None or runner is None:
        return
    from septr_fast.report import results

    shown = str(item.config.getoption("--audio"))
    run = results.Run(_stamp(runner.device), runner.setting, shown, {}, runner.results, runner.not_run)
    unfinished = file.with_suffix(".partial")
    results.store(run, unfinished)
    unfinished.replace(file)


@functools.cache
def _stamp(device: Any) -> dict[str, Any]:
    from benchmarks.suite.stamp import stamp

    return stamp(device)
