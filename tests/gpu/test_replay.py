"""Which tests the stage `check` replays: all that take a device, and with the packages that it asks for alone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.stated_packages import link

pytest.importorskip("triton")

from benchmarks.gpu import processes
from benchmarks.gpu.__main__ import PACKAGES
from benchmarks.gpu.checks import replay as gpu_replay

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Collected:
    """What pytest finds in all of `tests/`.

    Attributes:
        files: that have tests which take the device.
        unread: lines of those that could not be read.
        output: of pytest.
    """

    files: set[str]
    unread: list[dict[str, Any]]
    output: str


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """By a Python that has the packages for the stage `check` and no other."""
    folder = tmp_path_factory.mktemp("collected")
    packages, outcomes = link(tmp_path_factory.mktemp("packages"), PACKAGES["check"]), folder / "outcomes.jsonl"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    options = ["--outcomes", str(outcomes), "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "benchmarks.gpu.checks.replay_plugin",
            *options,
            "tests",
        ],
        cwd=ROOT,
        env={**plain, "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])},
        capture_output=True,
        text=True,
    )
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line}
    return Collected(files, [line for line in processes.lines(outcomes) if "file" in line], done.stdout + done.stderr)


def test_no_other_package_is_there(collected: Collected) -> None:
    """What is collected is collected without the packages that a developer has."""
    reasons = " ".join(entry["reason"] for entry in collected.unread)
    assert all(f"No module named '{name}'" in reasons for name in ("soundfile", "hypothesis")), collected.output


def test_every_file_is_read_or_skipped_for_want_of_a_package(collected: Collected) -> None:
    chosen = gpu_replay.files()
    unread = {entry["file"]: entry for entry in collected.unread if entry["file"] in chosen}
    assert all(entry["outcome"] == "skipped" for entry in unread.values()), unread
    assert all("could not import" in entry["reason"] for entry in unread.values()), unread
    assert "tests/kernels/test_passes.py" in collected.files


def test_the_files_are_those_with_tests_that_take_the_device(collected: Collected) -> None:
    chosen = set(gpu_replay.files())
    assert collected.files == chosen - {entry["file"] for entry in collected.unread}
    assert "tests/benchmarks/test_benchmarks.py" not in chosen


TEXTS = {
    "def test_it(device: torch.device) -> None: ...": True,
    "@pytest.fixture\ndef model(device): ...": True,
    "@pytest.fixture(scope='module', autouse=True)\ndef _interpreted(device): ...": True,
    "def test_it() -> None:\n    def helper(device: torch.device): ...": False,
    "@pytest.mark.parametrize('device', ['cpu'])\ndef test_it(device: str): ...": False,
    "def helper(device: torch.device) -> None: ...": False,
    "def test_it(devices: int) -> None: ...": False,
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=range(len(TEXTS)))
def test_what_takes_a_device(text: str, expected: bool, tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_planted.py").write_text(text)
    assert gpu_replay.files(folder) == (["tests/test_planted.py"] if expected else [])
