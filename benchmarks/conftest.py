"""Options, the runner and its progress bar, and the tables, charts and results at the end."""

from __future__ import annotations

import argparse
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measuring import roofline
from benchmarks.measuring.timing import Budget
from benchmarks.speech import spoken_words
from benchmarks.suite import cases
from benchmarks.suite.cases import Case
from benchmarks.suite.data import Source
from benchmarks.suite.evidence import MEASURED, digest
from benchmarks.suite.runner import Runner
from benchmarks.suite.stamp import stamp
from septr_fast import progress
from septr_fast.commands import report as report_command
from septr_fast.report import groups, results, summary, tables

HERE = Path(__file__).resolve().parent
SMOKE_MEMORY = 4 / 1024
"""GiB for a largest batch in the smoke setting."""
RUNNER = pytest.StashKey["Runner"]()
STAMP = pytest.StashKey[dict[str, Any]]()
PROGRESS = pytest.StashKey["Progress"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("septr_fast")
    group.addoption("--brief", dest="setting", action="store_const", const="brief", default="brief", help="default")
    group.addoption(
        "--quick", dest="setting", action="store_const", const="quick", help="all that is shown; half an hour"
    )
    group.addoption("--full", dest="setting", action="store_const", const="full", help="all shapes; hours")
    group.addoption("--smoke", dest="setting", action="store_const", const="smoke", help="that everything runs")
    group.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    group.addoption("--audio", type=_audio, help="folder of WAV files, one folder per class, or 'noise'")
    group.addoption("--memory", type=float, help="GiB for a largest batch; default: 0.5 on a CPU, 16 on a GPU")
    group.addoption("--seconds", type=float, default=float("inf"), help="after which nothing new is started")
    group.addoption("--threads", type=int, help="threads of PyTorch; default: PyTorch's choice")
    group.addoption("--out", type=Path, default=HERE / "out", help="folder for audio, charts and results")


def _audio(value: str) -> str | Path:
    if value != "noise" and not Path(value).is_dir():
        raise argparse.ArgumentTypeError(f"{value}: expected 'noise' or a folder of WAV files, which is not a folder")
    return value if value == "noise" else Path(value)


class Progress:
    """How many models of all cases are done, written past pytest's capture."""

    def __init__(self, config: pytest.Config, total: int) -> None:
        self.config = config
        with uncaptured(config):
            self.bar = progress.start(total, "models")

    def show(self, what: str) -> None:
        """Say what happens next."""
        with uncaptured(self.config):
            self.bar.say(what)

    def advance(self) -> None:
        """One more is done."""
        with uncaptured(self.config):
            self.bar.advance()

    def close(self) -> None:
        """Leave what is shown where it is."""
        with uncaptured(self.config):
            self.bar.say("")
            self.bar.close()


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let what is written go to the terminal."""
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        yield


def device(config: pytest.Config) -> torch.device:
    """Where the models run."""
    name = config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: PyTorch sees no CUDA device")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def settings(config: pytest.Config) -> tuple[Case, ...]:
    """The cases of this run."""
    return cases.cases(config.getoption("setting"), device(config).type)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "model_name"} <= set(metafunc.fixturenames):
        groups = metafunc.module.GROUPS
        chosen = [case for case in settings(metafunc.config) if case.group in groups]
        pairs = [(case, model) for case in chosen for model in case.models]
        metafunc.parametrize(("case", "model_name"), pairs, ids=[f"{case.name}-{model}" for case, model in pairs])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the cases in the order of their setting, what matters most first."""
    order = {case.name: index for index, case in enumerate(settings(config))}

    def place(item: pytest.Item) -> int:
        call = getattr(item, "callspec", None)
        return len(order) if call is None else order.get(call.params["case"].name, len(order))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Import what models are compiled and recorded with, and let the collector of garbage pass over all of it."""
    importlib.import_module("torch._inductor.compile_fx")
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """The runner of this session, with its progress bar."""
    config = request.config
    shown_by = Progress(config, sum(1 for item in request.session.items if hasattr(item, "callspec")))
    config.stash[PROGRESS] = shown_by
    where = device(config)
    usual = SMOKE_MEMORY if config.getoption("setting") == "smoke" else 16.0 if where.type == "cuda" else 0.5
    memory = config.getoption("--memory") or usual
    made = Runner(
        setting=config.getoption("setting"),
        device=where,
        source=Source(_folder(config), where),
        budget=Budget(config.getoption("--seconds")),
        limit=int(memory * 2**30),
        notify=shown_by.show,
    )
    config.stash[RUNNER] = made
    yield made
    shown_by.close()


@pytest.fixture(autouse=True)
def _count(request: pytest.FixtureRequest) -> Iterator[None]:
    """Move the bar on, and store what there is so far: a run may be cut off."""
    yield
    config = request.config
    if PROGRESS in config.stash:
        config.stash[PROGRESS].advance()
    if RUNNER in config.stash:
        results.store(so_far(config, config.stash[RUNNER]), config.getoption("--out") / "results.json")


def _folder(config: pytest.Config) -> Any:
    """A function that gives the folder of clips: the user's, or spoken words of voices held out for testing."""
    given = config.getoption("--audio")
    if isinstance(given, Path):
        return lambda: given
    if given == "noise":
        return None
    words, voices = spoken_words.WORDS, spoken_words.VOICES
    if config.getoption("setting") == "smoke":
        words, voices = words[:4], {"test": voices["test"][:2]}

    def spoken() -> Path:
        with uncaptured(config):
            return spoken_words.speak(config.getoption("--out") / "speech", words, voices) / "test"

    return spoken


def shown(config: pytest.Config) -> str:
    """What the spectrograms show."""
    given = config.getoption("--audio")
    return "35 words by eSpeak NG" if given is None else "noise" if given == "noise" else "a folder of clips"


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """No dots between the progress bar's updates."""
    if report.when == "call" and report.passed and "model_name" in getattr(report, "keywords", {}):
        return "passed", "", "PASSED"
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    runner = config.stash.get(RUNNER, None)
    if runner is None or not runner.results:
        return
    out: Path = config.getoption("--out")
    run = finish(config, runner)
    results.store(run, out / "results.json")
    terminalreporter.ensure_newline()
    terminalreporter.section("SepTr against its baselines")
    terminalreporter.write_line(f"{summary.machine(run)}\n{summary.ceilings(run)}")
    for group in groups.speed_groups(run):
        found = [result for result in run.results if result.group == group]
        terminalreporter.write_line(f"\n{groups.title(group)}\n\n{tables.speed(run, found, tables.SHORT)}")
    for table in (tables.largest_batch(run), tables.growth(run), tables.not_run(run)):
        terminalreporter.write_line(f"\n{table}" if table else "")
    if report_command.run([out / "results.json"], out) == 0:
        terminalreporter.write_line(f"\npage: {out / 'report.md'}   figures: {out / 'results.json'}")


def so_far(config: pytest.Config, runner: Runner) -> results.Run:
    """What the session has found, without the device's ceilings and the kernels' arithmetic."""
    if STAMP not in config.stash:
        config.stash[STAMP] = {**stamp(runner.device), "sources": digest(MEASURED)}
    return results.Run(
        stamp=config.stash[STAMP],
        setting=runner.setting,
        input=shown(config),
        ceilings={},
        results=runner.results,
        not_run=runner.not_run,
    )


def finish(config: pytest.Config, runner: Runner) -> results.Run:
    """All that the session found, the device's ceilings and the kernels' arithmetic among it."""
    of_kernels = {roofline.PRECISION} if runner.device.type == "cuda" else set()
    return replace(
        so_far(config, runner),
        ceilings=runner.ceilings(of_kernels | {result.precision for result in runner.results}),
        kernels=roofline.kernels(runner.device, smoke=runner.setting == "smoke"),
    )
