"""A pytest plugin that runs one of several parts of the tests that take a device, and notes every outcome at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bare import make_importable

make_importable()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("septr_fast")
    group.addoption("--part", default="0/1", help="INDEX/COUNT: every COUNT-th test, from INDEX")
    group.addoption("--outcomes", type=Path, help="file that gets a line of JSON for every test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    index, count = map(int, config.getoption("--part").split("/"))
    items[:] = [item for item in items if "device" in getattr(item, "fixturenames", ())][index::count]


class Outcomes:
    """Appends to a file, so that nothing is lost where the time is up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended."""
        if report.when != "call" and report.passed:
            return
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.failed:
            line["reason"] = report.longreprtext[-2000:]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path is not None:
        config.pluginmanager.register(Outcomes(path))
