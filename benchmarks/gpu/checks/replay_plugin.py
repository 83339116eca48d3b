"""A pytest plugin that runs one of several parts of the tests that take a device, and notes every outcome at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import processes
from benchmarks.gpu.bare import make_importable

make_importable()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("septr_fast")
    group.addoption("--part", default="0/1", help="INDEX/COUNT: every COUNT-th test, from INDEX")
    group.addoption("--outcomes", type=Path, help="file that gets a line of JSON for every test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    index, count = map(int, config.getoption("--part").split("/"))
    items[:] = [item for item in items if takes_the_device(item)][index::count]


def takes_the_device(item: pytest.Item) -> bool:
    """Whether a test, or a fixture of it, takes the fixture `device`, and no device of the test's own."""
    own = getattr(getattr(item, "callspec", None), "params", {})
    return "device" in getattr(item, "fixturenames", ()) and "device" not in own


class Outcomes:
    """Appends to a file, so that nothing is lost where the time is up.

    A line tells how many tests were `chosen`; others the `outcome` of a `test`, or of a `file` that was not read.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.failed = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note how many tests are run."""
        self._note({"chosen": len(session.items)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that is not read."""
        if not report.passed:
            longrepr: Any = report.longrepr
            reason = longrepr[2] if isinstance(longrepr, tuple) else report.longreprtext[-2000:]
            self._note({"file": report.nodeid, "outcome": report.outcome, "reason": reason})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended."""
        if report.when != "call" and report.passed:
            return
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.failed:
            line["reason"] = report.longreprtext[-2000:]
            self.failed = True
        self._note(line)

    def pytest_runtest_logfinish(self) -> None:
        """End the run where a test left the device unusable: all others would fail too."""
        if self.failed and processes.is_lost(self.device):
            pytest.exit("the device is lost", processes.LOST)

    def _note(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path is not None:
        config.pluginmanager.register(Outcomes(path, torch.device(config.getoption("--device"))))
