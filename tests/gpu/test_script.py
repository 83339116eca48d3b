"""The stages of `python -m benchmarks.gpu`, rehearsed on a CPU from a checkout that is not installed."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stated_packages import link

pytest.importorskip("triton")

from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import figures as gpu_figures
from benchmarks.gpu import processes
from benchmarks.gpu.__main__ import PACKAGES, PARTS, SECONDS
from benchmarks.gpu.checks import corpus as gpu_corpus
from benchmarks.gpu.checks import replay as gpu_replay
from benchmarks.measuring import timing
from benchmarks.suite import cases
from benchmarks.suite.evidence import MEASURED, digest
from benchmarks.suite.stamp import commit, processor
from septr_fast.passes.triton import tuned
from septr_fast.report.results import load

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without what git knows."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("septr_fast", "kernels", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "out", "goldens"))
    for file in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, root)
    return root


@pytest.fixture(scope="module")
def stages(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], str]]:
    """The file and the summary of every stage, by a Python that has the packages for it and no other."""
    out, logs = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("logs")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    found = {}
    for stage in SECONDS:
        command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--stage", stage, "--tiny", "--device", "cpu"]
        packages = link(tmp_path_factory.mktemp("packages"), PACKAGES[stage])
        done = subprocess.run(
            [*command, "--out", str(out), "--logs", str(logs), "--commit", "0123456789ab"],
            cwd=checkout,
            env={**plain, "PYTHONPATH": str(packages), "XDG_CACHE_HOME": str(logs / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[stage] = json.loads((out / f"{stage}.json").read_text()), done.stdout
    assert not (logs / "cache" / "septr_fast" / "tuned").exists()
    assert {file.name for file in out.iterdir()} == {*(f"{stage}.json" for stage in SECONDS), "tuned.json", "tune.log"}
    return found


@pytest.mark.parametrize("stage", SECONDS)
def test_files_are_stamped(stage: str, stages: dict[str, Any]) -> None:
    content, text = stages[stage]
    assert content["stage"] == stage
    assert content["tiny"] is content["passed"] is True
    named = processor() if stage == "bench" else platform.processor() or platform.machine()
    assert content["stamp"]["device"] == named, "pytest-benchmark brings what knows the processor's name"
    assert content["stamp"]["kind"] == "cpu"
    assert content["stamp"]["versions"]["torch"] == torch.__version__
    assert content["stamp"]["commit"] == "0123456789ab"
    assert "error" not in content
    assert 0 < content["seconds"] < 540
    assert text.endswith(f"{stage}.json\n")
    assert SECONDS[stage] <= 480


def test_check(stages: dict[str, Any]) -> None:
    content, text = stages["check"]
    results = content["results"]
    assert results["replay"] == {
        "chosen": 2,
        "counts": {"passed": 2},
        "failures": [],
        "skipped": [],
        "unfinished": [],
    }
    assert {entry["pass"].split()[0] for entry in results["repeat"]} == {"low-rank", "direct", "class-only", "merged"}
    assert all(entry["runs"] == entry["wanted"] == 1 and entry["different"] == 0 for entry in results["repeat"])
    (alone,) = results["configurations"]
    assert (alone["kernel"], alone["wrong"]) == ("class_attention_fwd", [])
    assert results["corpus"]["stored"] == sum(results["corpus"]["cases"].values()) == 3
    assert results["corpus"]["cases"].keys() == set(gpu_corpus.LEVELS)
    assert results["corpus"]["wrong"] == results["corpus"]["unfinished"] == results["unfinished"] == []
    need_gpu = ("graphs", "stream", "sanitize")
    assert content["left_out"] == [f"{name}: it needs a CUDA device" for name in need_gpu]
    assert set(results) | set(need_gpu) == {*PARTS, "unfinished"}
    assert "\npassed\n" in text
    assert "left out: graphs" in text
    assert "tests of the kernels, compiled: 2 tried, 0 wrong" in text
    assert tuple(gpu_check.PARTS) == PARTS


def test_ceilings(stages: dict[str, Any]) -> None:
    results = stages["ceilings"][0]["results"]
    assert set(results["product"]) == {"bfloat16", "float16", "tf32", "float32"}
    for entry in results["product"].values():
        assert entry["flops_per_second"] == pytest.approx(2 * entry["size"] ** 3 / entry["seconds"])
        assert entry["lower_quartile"] <= entry["seconds"] <= entry["upper_quartile"]
        assert entry["calls"] == 50
    copied = results["copy"]
    assert copied["bytes_per_second"] == pytest.approx(2 * copied["bytes"] / copied["seconds"])


def test_bench(stages: dict[str, Any], tmp_path: Path) -> None:
    content, text = stages["bench"]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content["results"]["run"]))
    run = load(file)
    assert run.setting == "smoke"
    assert run.input == "noise"
    assert {result.group for result in run.results} == {cases.BLOCK, cases.LARGEST}
    assert {result.model for result in run.results} >= {cases.OURS, cases.REFERENCE, cases.FUSED, cases.MERGED}
    assert run.stamp == {**content["stamp"], "date": run.stamp["date"], "sources": digest(MEASURED)}
    assert all(f"{result.case:60} {result.model:42}" in text for result in run.results)
    on_pytorch = f"{run.results[0].case}: {cases.ON_PYTORCH}: it is SepTr here"
    assert on_pytorch in content["left_out"]
    assert f"left out: {on_pytorch}" in text


def test_tune(stages: dict[str, Any]) -> None:
    results = stages["tune"][0]["results"]
    assert [entry["kernel"] for entry in results["found"]] == ["class_key_bwd"]
    (file,) = map(Path, results["files"])
    assert json.loads(file.read_text())["interpreted"] is True
    with pytest.raises(ValueError, match="the interpreter's"):
        tuned.read(file, "cpu", None)
    assert "class_key_bwd: 8 warps" in file.with_name("tune.log").read_text()


PLANTED = {
    "test_planted.py": "import time, pytest, torch\nfrom septr_fast import kernels\n"
    "def test_right(device: torch.device): assert 'checkout' in kernels.__file__\n"
    "def test_wrong(device: torch.device): raise ArithmeticError('planted')\n"
    "def test_skipped(device: torch.device): pytest.skip('planted')\n"
    "def test_no_device(): raise ArithmeticError('not run')\n",
    "test_wanting.py": "import pytest\npytest.importorskip('no_such_package')\ndef test_it(device): assert False\n",
    "test_broken.py": "import no_other_package\ndef test_it(device): assert False\n",
    "test_slow.py": "import time\ndef test_first(device): pass\n"
    "def test_endless(device): time.sleep(600)\ndef test_last(device): pass\n",
}


def replayed(
    checkout: Path, names: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 300
) -> tuple[dict[str, Any], timing.Budget]:
    """What the replay finds in planted files, and its budget."""
    for name in names:
        (checkout / "tests" / name).write_text(PLANTED[name])
    for module in (gpu_replay, processes):
        monkeypatch.setattr(module, "ROOT", checkout)
    monkeypatch.setattr(gpu_replay, "TINY_TESTS", [f"tests/{name}" for name in names])
    budget = timing.Budget(seconds)
    return gpu_replay.replay(CPU, True, budget, out), budget


def test_replay_tells_failures(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, budget = replayed(checkout, ["test_planted.py"], tmp_path, monkeypatch)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["chosen"] == 3
    (failure,) = found["failures"]
    assert failure["test"].endswith("test_planted.py::test_wrong")
    assert "ArithmeticError: planted" in failure["reason"]
    assert not found["unfinished"]
    assert not budget.left_out
    (told,) = gpu_figures.faults({"replay": found})
    assert told.startswith("tests/test_planted.py::test_wrong: ")


def test_replay_tells_which_files_it_cannot_read(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of an optional package a file is left out; what else cannot be imported is wrong. The others run."""
    found, budget = replayed(checkout, ["test_broken.py", "test_wanting.py", "test_planted.py"], tmp_path, monkeypatch)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    (skipped,) = found["skipped"]
    assert (skipped["file"], "no_such_package" in skipped["reason"]) == ("tests/test_wanting.py", True)
    assert budget.left_out == [f"replay: tests/test_wanting.py: {skipped['reason']}"]
    assert found["failures"][0]["test"] == "tests/test_broken.py"
    assert "no_other_package" in gpu_figures.faults({"replay": found})[0]
    assert not found["unfinished"]


def test_a_replay_out_of_time_is_unfinished_and_not_wrong(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, end = tmp_path / "replay-0.jsonl", processes.finish

    def finish(process: processes.Process, limit: float) -> int | None:
        while len(processes.lines(noted)) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        return end(process, 0.0)

    monkeypatch.setattr(processes, "finish", finish)
    found, budget = replayed(checkout, ["test_slow.py"], tmp_path, monkeypatch)
    assert (found["chosen"], found["counts"], found["unfinished"]) == (3, {"passed": 1}, [])
    assert budget.unfinished == ["replay: 2 of 3 tests of part 0 of 1"]
    assert gpu_figures.faults({"replay": found}) == []


def test_a_bench_that_is_ended_has_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stores one result and hangs stands for pytest."""
    so_far = tmp_path / "bench" / "so-far.json"
    script = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); time.sleep(600)"

    def start(arguments: list[str], log: Path, device: torch.device) -> processes.Process:
        log.touch()
        found = '{"results": [], "not_run": []}'
        return subprocess.Popen([sys.executable, "-S", "-c", script, str(so_far), found], start_new_session=True)

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(gpu_bench, "EVERY", 0.2)
    monkeypatch.setattr(gpu_bench, "OVERRUN", 3.0)
    kept: list[Any] = []
    budget = timing.Budget(0)
    found = gpu_bench.measure(CPU, True, budget, tmp_path, kept.append)
    assert kept == [{"run": {"results": [], "not_run": []}}]
    assert found == {"run": kept[0]["run"], "passed": False, "log": ""}
    assert budget.unfinished == ["the last benchmarks, the device's ceilings and the kernels"]


def test_a_process_out_of_time_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
    assert processes.finish(process, 0.1) is None
    assert process.poll() is not None


def test_budget() -> None:
    budget = timing.Budget(100)
    assert budget.allows("a thing", 50)
    assert not budget.allows("a long thing", 200)
    part = budget.part(0.25)
    assert 20 < part.left <= 25
    assert not part.allows("a part", 30)
    assert budget.left_out == ["a long thing: no time", "a part: no time"]


def test_calls_are_interleaved() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert {name: len(times) for name, times in timing.interleaved(calls, CPU, 3, limit=60).items()} == {"a": 3, "b": 3}
    assert order == ["a", "b"] * 3
    timing.interleaved(calls, CPU, 3, limit=0)
    assert order[6:] == ["a", "b"]
    assert timing.spread([3.0, 1.0, 2.0])["seconds"] == 2
    assert timing.spread([3.0])["upper_quartile"] == 3


def test_commit_is_read_without_git(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
    head = tmp_path / ".git" / "HEAD"
    head.parent.mkdir()
    head.write_text("ref: refs/heads/main\n")
    assert commit(tmp_path) == "unknown"
    (tmp_path / ".git" / "packed-refs").write_text("# pack-refs\n0123456789abcdef refs/heads/main\n")
    assert commit(tmp_path) == "0123456789ab"
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("fedcba9876543210\n")
    assert commit(tmp_path) == "fedcba987654"
    head.write_text("abcdefabcdefabcd\n")
    assert commit(tmp_path) == "abcdefabcdef"
