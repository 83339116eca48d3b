"""Shared set-up: repeatable weights, the repository's root on the path, Triton's interpreter on a CPU."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the kernels' tests run: cpu interprets, cuda compiles")
    parser.addoption("--long", action="store_true", help="also what takes minutes")
    parser.addoption("--evidence", action="store_true", help="say at the end which stored evidence is out of date")
    parser.addoption("--types", action="store_true", help="also mypy, beside the tests")
    parser.addoption("--update-counts", action="store_true", help="store what test_counts.py counts")


def pytest_configure(config: pytest.Config) -> None:
    from audio import plain_numba

    plain_numba.install()
    from support.folding import fold_always

    fold_always()
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        from septr_fast.passes import backend

        if backend._why_no_triton() is None:
            from support.kernels import interpreter

            interpreter.install()
    if config.getoption("--types") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Types())


class Types:
    """Runs mypy beside the tests, and says what it finds above their summary."""

    def pytest_sessionstart(self) -> None:
        self._mypy = subprocess.Popen([sys.executable, "-m", "mypy"], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._found, _ = self._mypy.communicate()
        if self._mypy.returncode:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("mypy")
        terminalreporter.write(self._found)


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over all that was imported and collected, whenever a test makes garbage.

    The compiler is imported before, as many tests do it sooner or later.
    """
    importlib.import_module("torch._inductor.compile_fx")
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which stored evidence is of other sources than these; that fails nothing."""
    if hasattr(config, "workerinput") or not config.getoption("--evidence"):
        return
    from trust import page, registry

    from benchmarks.suite import evidence

    parts = [f"make trust: {name}" for name in registry.out_of_date(page.stored())]
    found = [*parts, *evidence.out_of_date()]
    terminalreporter.section("evidence out of date" if found else "evidence: all of these sources")
    for line in found:
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Judge a test whose results fall short by little on more draws; see `judging`."""
    from support.judging import judge_test
    from support.tolerance import ShortfallError

    try:
        return (yield)
    except ShortfallError as fallen_short:
        names = pyfuncitem._fixtureinfo.argnames
        judge_test(lambda: pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}), fallen_short)
        return True


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels' tests run."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    from support.judging import FIRST_SEED

    torch.manual_seed(FIRST_SEED)


@pytest.fixture
def short_form(request: pytest.FixtureRequest) -> Callable[[ModuleType], Any]:
    """Runs a part of `trust` in its short form; skips the test where the long form ran on these sources.

    What is stored of the long form, nothing wrong, belongs to all that the part imports: where a line of that changes,
    the short form runs again. With `--long` it always does.
    """
    from trust import page, registry
    from trust.outcome import silent

    def run(part: ModuleType) -> Any:
        commit = registry.unchanged_since(part.NAME, page.stored())
        if commit is not None and not request.config.getoption("--long"):
            pytest.skip(f"make trust ran the long form on these sources, at {commit}: --long")
        return part.run(full=False, progress=silent)

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small models: threads that wait for one another cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
