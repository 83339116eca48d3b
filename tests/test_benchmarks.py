"""The benchmarks: a smoke run as users start it, refusal of wrong results, tables and README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from benchmarks import parity, report
from benchmarks.cases import BASELINE, FULL, SMOKE, Case, build, step

ROOT = Path(__file__).resolve().parent.parent
CASE = SMOKE[1]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", "--smoke", *options]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command += ["-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for index, word in enumerate(("no", "yes")):
        (folder / word).mkdir()
        wave = torch.sin(torch.arange(16000) * (0.05 + 0.1 * index)).numpy()
        soundfile.write(folder / word / "clip.wav", wave, 16000)
    return folder


def test_smoke_run_on_a_folder_of_audio(audio: Path, tmp_path: Path) -> None:
    done = run("--audio", str(audio), "--out", str(tmp_path), "--benchmark-json", str(tmp_path / "own.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    about, results = report.load(tmp_path / "results.json")
    assert [(result.case, result.model) for result in results] == [
        (case.name, model) for case in SMOKE for model in case.models
    ]
    assert report.table(results) in done.stdout
    assert about["machine"]["torch"] == torch.__version__
    assert about["audio"] == "a folder of clips"
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "100%" in done.stderr
    assert len(json.loads((tmp_path / "own.json").read_text())["benchmarks"]) == 5
    by_model = {result.model: result for result in results if result.case == CASE.name}
    plain, ours, recomputing = (by_model[model] for model in CASE.models)
    assert ours.gflop < recomputing.gflop < plain.gflop
    assert recomputing.saved_mb < ours.saved_mb < plain.saved_mb
    assert plain.ratio == 1
    assert 0 < ours.lowest_ratio <= ours.ratio <= ours.highest_ratio
    assert {result.rounds for result in results} == {CASE.rounds}


def test_missing_audio_is_named(tmp_path: Path) -> None:
    done = run("--audio", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    assert done.returncode != 0
    assert "which is not a folder" in done.stdout


def outcome(case: Case) -> tuple[parity.Exact, parity.Errors, torch.Tensor, torch.Tensor]:
    x, labels = torch.randn(2, 1, *case.size), torch.tensor([0, 3])
    baseline = build(BASELINE, case, 5)
    exact = parity.exact(baseline, x, labels, case.task == "training step")
    return exact, parity.errors(baseline, x, labels, exact), x, labels


@pytest.mark.parametrize("case", SMOKE, ids=lambda case: case.task)
def test_right_results_pass(case: Case) -> None:
    exact, baseline, x, labels = outcome(case)
    for name in case.models:
        parity.check(parity.errors(build(name, case, 5), x, labels, exact), baseline, exact, name)


@pytest.mark.parametrize("case", SMOKE, ids=lambda case: case.task)
@pytest.mark.parametrize("change", [1e-4, float("nan")], ids=["slightly wrong", "NaN"])
def test_a_planted_wrong_result_is_refused(case: Case, change: float) -> None:
    exact, baseline, x, labels = outcome(case)
    model = build("SepTr", case, 5)
    with torch.no_grad():
        model.transformer[1].transformer_w.layers[0][1].fn.net[3].bias[0] += change
    with pytest.raises(parity.ParityError, match="Nothing was timed"):
        parity.check(parity.errors(model, x, labels, exact), baseline, exact, "SepTr")


def test_a_planted_wrong_gradient_is_refused() -> None:
    exact, baseline, x, labels = outcome(CASE)
    model = build("SepTr", CASE, 5)
    model.transformer[0].pos_embedding_h.register_hook(lambda gradient: gradient * 1.001)
    with pytest.raises(parity.ParityError, match="the gradients are off"):
        parity.check(parity.errors(model, x, labels, exact), baseline, exact, "SepTr")


def test_models_start_alike_and_take_the_same_step() -> None:
    x, labels = torch.randn(2, 1, *CASE.size), torch.tensor([1, 2])
    models = [build(name, CASE, 5) for name in CASE.models]
    for model in models:
        step(model, CASE.task)(x, labels)
    for key, value in models[0].state_dict().items():
        assert not torch.equal(value, build(BASELINE, CASE, 5).state_dict()[key]), key
        for model in models[1:]:
            torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=3e-4)


def test_readme_shows_the_stored_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    path = Path("benchmarks/results/cpu.json")
    stored = report.load(ROOT / path)[1]
    assert [(result.case, result.model) for result in stored] == [
        (case.name, model) for case in FULL for model in case.models
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert report.section(path) in readme


def test_readme_shows_the_plan() -> None:
    done = subprocess.run([sys.executable, "-m", "septr_fast", "plan"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_ratios_are_of_neighbouring_calls() -> None:
    from benchmarks.test_septr import Beside

    beside = Beside(CASE, 5)
    beside.seconds = [9.0, 2.0, 6.0]
    assert beside.ratios([1.0, 2.0]) == [2.0, 3.0]
    beside.call(torch.randn(2, 1, *CASE.size), torch.tensor([0, 1]))
    assert len(beside.seconds) == 4
    assert beside.seconds[3] > 0
