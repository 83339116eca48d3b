"""Options, the spectrograms, the progress bar, and the table and chart at the end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from benchmarks import report, speech
from benchmarks.audio import Clips, load_clips
from benchmarks.cases import BASELINE, FULL, SMOKE, Case

HERE = Path(__file__).resolve().parent
PROGRESS = pytest.StashKey["Progress"]()
DETAILS = pytest.StashKey[dict[tuple[str, str], dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("septr_fast")
    group.addoption("--audio", type=Path, help="folder of WAV files, one folder per class; default: 35 spoken words")
    group.addoption("--smoke", action="store_true", help="tiny shapes, to see that everything runs")
    group.addoption("--threads", type=int, help="threads of PyTorch; default: PyTorch's choice")
    group.addoption("--out", type=Path, default=HERE / "out", help="folder for audio, chart and results")


class Progress:
    """A bar over all calls of all benchmarks, written past pytest's capture."""

    def __init__(self, config: pytest.Config, calls: int) -> None:
        self.config = config
        with uncaptured(config):
            self.bar = tqdm(total=calls, unit="call", dynamic_ncols=True, mininterval=0)

    def advance(self, what: str) -> None:
        """One more call is about to start."""
        with uncaptured(self.config):
            self.bar.set_description(what, refresh=False)
            self.bar.update()

    def close(self) -> None:
        """Leave the finished bar where it is."""
        with uncaptured(self.config):
            self.bar.set_description("done", refresh=False)
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


def settings(config: pytest.Config) -> tuple[Case, ...]:
    """The cases of this run."""
    return SMOKE if config.getoption("--smoke") else FULL


def pytest_configure(config: pytest.Config) -> None:
    config.stash[DETAILS] = {}
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "model_name"} <= set(metafunc.fixturenames):
        pairs = [(case, model) for case in settings(metafunc.config) for model in case.models]
        metafunc.parametrize(("case", "model_name"), pairs, ids=[f"{case.name}-{model}" for case, model in pairs])


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Iterator[Progress]:
    calls = sum((case.rounds + 1) * len(case.models) for case in settings(request.config))
    progress = Progress(request.config, calls)
    yield progress
    progress.close()


@pytest.fixture(scope="session")
def audio_folder(request: pytest.FixtureRequest) -> Path:
    """The user's folder, or the spoken words of the voices held out for testing."""
    given: Path | None = request.config.getoption("--audio")
    if given is not None:
        return given
    words, voices = speech.WORDS, speech.VOICES
    if request.config.getoption("--smoke"):
        words, voices = words[:4], {"test": voices["test"][:2]}
    with uncaptured(request.config):
        return speech.speak(request.config.getoption("--out") / "speech", words, voices) / "test"


@pytest.fixture(scope="session")
def clips(request: pytest.FixtureRequest, audio_folder: Path) -> Callable[[Case], Clips]:
    """Spectrograms at the size of a case, read once for each size."""
    loaded: dict[tuple[int, int], Clips] = {}

    def at(case: Case) -> Clips:
        size = case.size
        if size not in loaded:
            with uncaptured(request.config):
                loaded[size] = load_clips(audio_folder, size, limit=32)
        return loaded[size]

    return at


@pytest.fixture(scope="session")
def details(request: pytest.FixtureRequest) -> dict[tuple[str, str], dict[str, Any]]:
    """What is known of each case and model besides its times."""
    return request.config.stash[DETAILS]


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """No dots between the progress bar's updates."""
    if report.when == "call" and report.passed and "model_name" in getattr(report, "keywords", {}):
        return "passed", "", "PASSED"
    return None


def results(config: pytest.Config) -> list[report.Result]:
    """The times that pytest-benchmark took, joined with the details."""
    session = getattr(config, "_benchmarksession", None)
    times = {} if session is None else {(one.group, one.extra_info.get("model")): one for one in session.benchmarks}
    details = config.stash[DETAILS]
    order = [(case.name, model) for case in settings(config) for model in case.models]
    found = []
    for key in order:
        if key not in times or (key[0], BASELINE) not in times:
            continue
        detail = details[key]
        stats = times[key].stats
        ratios = detail.get("ratios", [1.0])
        found.append(
            report.Result(
                case=key[0],
                model=key[1],
                seconds=stats.median,
                spread=stats.iqr,
                rounds=stats.rounds,
                ratio=statistics.median(ratios),
                lowest_ratio=min(ratios),
                highest_ratio=max(ratios),
                gflop=detail["gflop"],
                saved_mb=detail["saved_mb"],
                error=detail["error"],
                error_ratio=detail["error"] / max(details[key[0], BASELINE]["error"], 1e-30),
            )
        )
    return found


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = results(config)
    if not found:
        return
    out: Path = config.getoption("--out")
    about = report.machine()
    terminalreporter.ensure_newline()
    terminalreporter.section("SepTr against the plain model")
    terminalreporter.write_line(
        f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, float32; {report.LEGEND}"
    )
    terminalreporter.write_line("\n" + report.table(found) + "\n")
    audio = config.getoption("--audio")
    report.store(found, out / "results.json", audio="35 words by eSpeak NG" if audio is None else "a folder of clips")
    report.chart(found, out / "benchmark.png")
    terminalreporter.write_line(f"chart: {out / 'benchmark.png'}   figures: {out / 'results.json'}")
