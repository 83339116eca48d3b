"""The stages of `benchmarks/gpu.py`, rehearsed on a CPU from a checkout that is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import cases, gpu_check, gpu_figures, gpu_replay, processes, timing
from benchmarks.gpu import PARTS, SECONDS
from benchmarks.stamp import commit, processor
from septr_fast import tuned
from septr_fast.report.results import load

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without what git knows."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("septr_fast", "kernels", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "out", "goldens"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.fixture(scope="module")
def stages(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], str]]:
    """The file and the summary of every stage, by a Python that reads no `.pth` file: nothing is installed to it."""
    out = tmp_path_factory.mktemp("out")
    packages = str(Path(torch.__file__).parent.parent)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    found = {}
    for stage in SECONDS:
        command = [sys.executable, "-S", "benchmarks/gpu.py", "--stage", stage, "--tiny", "--device", "cpu"]
        done = subprocess.run(
            [*command, "--out", str(out)],
            cwd=checkout,
            env={**plain, "PYTHONPATH": packages, "XDG_CACHE_HOME": str(out / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[stage] = json.loads((out / f"{stage}.json").read_text()), done.stdout
    assert not (out / "cache" / "septr_fast" / "tuned").exists()
    return found


@pytest.mark.parametrize("stage", SECONDS)
def test_files_are_stamped(stage: str, stages: dict[str, Any]) -> None:
    content, text = stages[stage]
    assert content["stage"] == stage
    assert content["tiny"] is content["passed"] is True
    assert content["stamp"]["device"] == processor()
    assert content["stamp"]["kind"] == "cpu"
    assert content["stamp"]["versions"]["torch"] == torch.__version__
    assert content["stamp"]["commit"] == "unknown"
    assert 0 < content["seconds"] < 540
    assert text.endswith(f"{stage}.json\n")
    assert SECONDS[stage] <= 480


def test_check(stages: dict[str, Any]) -> None:
    content, text = stages["check"]
    results = content["results"]
    assert results["replay"] == {"counts": {"passed": 2}, "failures": [], "unfinished": []}
    assert {entry["pass"].split()[0] for entry in results["repeat"]} == {"low-rank", "direct", "class-only", "merged"}
    assert all(entry["runs"] == 1 and entry["different"] == 0 for entry in results["repeat"])
    (alone,) = results["configurations"]
    assert (alone["kernel"], alone["wrong"]) == ("class_attention_fwd", [])
    assert results["corpus"] == {
        "cases": {"operators on Triton": 1, "passes on Triton": 1},
        "wrong": [],
        "unfinished": [],
    }
    need_gpu = ("graphs", "stream", "sanitize")
    assert content["left_out"] == [f"{name}: it needs a CUDA device" for name in need_gpu]
    assert set(results) | set(need_gpu) == set(PARTS)
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
    assert run.stamp == {**content["stamp"], "date": run.stamp["date"]}
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


def test_replay_tells_failures(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "tests" / "test_planted.py").write_text(
        "import pytest, torch\nfrom septr_fast import kernels\n"
        "def test_right(device: torch.device): assert 'checkout' in kernels.__file__\n"
        "def test_wrong(device: torch.device): raise ArithmeticError('planted')\n"
        "def test_skipped(device: torch.device): pytest.skip('planted')\n"
        "def test_no_device(): raise ArithmeticError('not run')\n"
    )
    for module in (gpu_replay, processes):
        monkeypatch.setattr(module, "ROOT", checkout)
    monkeypatch.setattr(gpu_replay, "TINY_TESTS", ["tests/test_planted.py"])
    found = gpu_replay.replay(CPU, True, timing.Budget(300), tmp_path)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    (failure,) = found["failures"]
    assert failure["test"].endswith("test_planted.py::test_wrong")
    assert "ArithmeticError: planted" in failure["reason"]
    assert not found["unfinished"]
    (told,) = gpu_figures.faults({"replay": found})
    assert told.startswith("tests/test_planted.py::test_wrong: ")


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
