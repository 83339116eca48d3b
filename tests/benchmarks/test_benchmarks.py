"""The benchmarks: a smoke run as users start it, what is timed on which inputs, and what cannot run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from support.runs.benchmark_runs import CLASSES, CPU, FORWARD, STEP, Timer, runner
from torch import nn

from benchmarks.measuring import company, roofline
from benchmarks.suite import baselines, cases, data, models, shapes
from benchmarks.suite import runner as runner_module
from benchmarks.suite.cases import AST, FUSED, MERGED, OURS, RECOMPUTING, REFERENCE, SMOKE, VIT, Case
from benchmarks.suite.data import Source
from septr_fast.report import results

ROOT = Path(__file__).resolve().parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", "--smoke", *options]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command += ["-p", "no:cacheprovider", "-p", "support.folding"]
    plain["PYTHONPATH"] = str(ROOT / "tests")
    return subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run on a folder of clips, and where it wrote."""
    audio, out = tmp_path_factory.mktemp("audio"), tmp_path_factory.mktemp("out")
    for index, word in enumerate(("no", "yes")):
        (audio / word).mkdir()
        wave = torch.sin(torch.arange(16000) * (0.05 + 0.1 * index)).numpy()
        soundfile.write(audio / word / "clip.wav", wave, 16000)
    done = run("--audio", str(audio), "--out", str(out), "--benchmark-json", str(out / "own.json"), "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return done, out


def test_everything_runs_or_says_why_not(smoke: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = smoke
    found = results.load(out / "results.json")
    asked = [(case.name, model) for case in SMOKE for model in case.models]
    ran = {(result.case, result.model) for result in found.results}
    reasons = {(entry.case, entry.model): entry.reason for entry in found.not_run}
    assert ran | set(reasons) == set(asked)
    assert not ran & set(reasons)
    assert {model for _, model in reasons} == {cases.ON_PYTORCH, cases.ON_TRITON, cases.GRAPH}
    assert reasons[SMOKE[0].name, cases.GRAPH] == "CUDA graphs need a CUDA device"
    assert f"{len(ran)} passed, {len(reasons)} skipped" in done.stdout
    assert len(json.loads((out / "own.json").read_text())["benchmarks"]) == len(ran)
    assert re.search(rf"^{len(asked)} of {len(asked)} models, \d+ s; {SMOKE[-1].name}", done.stderr, re.MULTILINE)
    assert "\r" not in done.stderr


def test_results_hang_together(smoke: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    found = results.load(smoke[1] / "results.json")
    assert found.setting == "smoke"
    assert found.input == "a folder of clips"
    assert found.stamp["kind"] == "cpu"
    assert found.stamp["versions"]["torch"] == torch.__version__
    assert set(found.ceilings) == {"copy", "float32", "bfloat16", "autocast"}
    assert all(rate > 0 for rate in found.ceilings.values())
    for result in found.results:
        assert 0 < result.lower_quartile <= result.seconds <= result.upper_quartile
        assert result.rounds >= 2
        assert result.error is not None
        assert 0 <= result.error < (0.1 if result.precision == "bfloat16" else 1e-4)
        assert (result.ratio is None) == (result.model == OURS or result.group == cases.LARGEST)
        if result.ratio is not None:
            assert 0 < result.lowest_ratio <= result.ratio <= result.highest_ratio
        assert (result.ours_seconds is None) == (result.ratio is None)
        if result.saved_bytes is not None:
            assert result.peak_bytes >= max(result.saved_bytes, 4 * result.parameters)
        assert (result.saved_bytes is None) == (result.group not in (cases.STEP, cases.LARGEST))
        assert result.useful_flops > 0
    step = {result.model: result for result in found.results if result.group == cases.STEP}
    assert step[OURS].flops == step[OURS].useful_flops < step[RECOMPUTING].flops < step[REFERENCE].flops
    assert step[RECOMPUTING].saved_bytes < step[OURS].saved_bytes < step[REFERENCE].saved_bytes
    assert step[OURS].parameters == step[REFERENCE].parameters
    assert "attention: " in step[FUSED].note
    largest = {result.model: result for result in found.results if result.group == cases.LARGEST}
    assert largest[OURS].batch > largest[REFERENCE].batch >= 1
    assert max(result.peak_bytes for result in largest.values()) <= 4 << 20
    assert {kernel.name for kernel in found.kernels} > {"axis_attention_fwd_kernel", "mlp_bwd_kernel"}
    assert all(kernel.seconds is None for kernel in found.kernels)


def test_the_page_is_written(smoke: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = smoke
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "Growth" in page
    charts = sorted(path.name for path in out.glob("*.png"))
    assert len(charts) >= 6
    assert all(name in page for name in charts)
    assert "reference, compiled" in done.stdout


def meet(started: list[subprocess.Popen[bytes]]) -> None:
    with company.company(2):
        assert [process.poll() for process in started] == [None, None]
        raise ValueError("planted")


def test_company_is_there_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noting(*given: Any, **options: Any) -> Any:
        started.append(start(*given, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noting)
    with pytest.raises(ValueError, match="planted"):
        meet(started)
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize("group", cases.CIRCUMSTANCES)
def test_circumstances_hold_while_a_case_is_timed(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[int] = []

    @contextmanager
    def noting(count: int) -> Iterator[None]:
        busy.append(count)
        yield

    class Noting(Timer):
        def pedantic(self, *given: Any, **options: Any) -> None:
            threads.append(torch.get_num_threads())
            super().pedantic(*given, **options)

    threads: list[int] = []
    monkeypatch.setattr(runner_module, "company", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runner().run(Noting(), replace(FORWARD, group=group), REFERENCE)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert busy == [{cases.BESIDE_ONE: 1, cases.ONE_THREAD: 0}.get(group, len(os.sched_getaffinity(0)))]
    assert threads == [1 if group == cases.ONE_THREAD else 2]
    assert after == 2


def test_missing_audio_is_named(tmp_path: Path) -> None:
    done = run("--audio", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    assert done.returncode != 0
    assert "which is not a folder" in done.stderr


@pytest.mark.parametrize(("setting", "device"), [(s, d) for s in ("smoke", "quick", "full") for d in ("cpu", "cuda")])
def test_settings_name_every_case_once(setting: str, device: str) -> None:
    found = cases.cases(setting, device)
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    groups = {cases.FORWARD, cases.STEP, *cases.PARTS, cases.LARGEST, *cases.GROWTH}
    on_cpu = set(cases.CIRCUMSTANCES) if setting == "smoke" or device == "cpu" else set()
    assert {case.group for case in found} == groups | on_cpu
    for case in found:
        assert OURS in case.models
        assert case.precision in cases.PRECISIONS
    for group in {case.group for case in found}:
        case = next(case for case in found if case.group == group)
        assert models.least_flops(OURS, replace(case, config=shapes.SMALL["benchmark"]), CLASSES) > 0
    if setting == "full":
        assert {case.shape for case in found} >= set(shapes.IN_USE)
        assert {case.batch for case in found} >= ({1, 8, 64} if device == "cuda" else {1, 4, 8})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("too much"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (torch._dynamo.exc.Unsupported("no such thing"), "torch.compile fails: no such thing"),
    ],
    ids=["GPU", "CPU", "compiler"],
)
def test_a_baseline_that_cannot_run_is_named(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(models, "build", fail)
    found = runner()
    with pytest.raises(pytest.skip.Exception):
        found.run(Timer(), FORWARD, FUSED)
    assert found.not_run == [results.NotRun(FORWARD.name, FUSED, reason)]
    with pytest.raises(type(error)):
        found.run(Timer(), FORWARD, OURS)
    assert len(found.not_run) == 1


def test_a_bug_in_a_baseline_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner().run(Timer(), FORWARD, REFERENCE)


def test_what_there_is_no_time_for_is_named() -> None:
    found = runner(seconds=0.0)
    with pytest.raises(pytest.skip.Exception):
        found.run(Timer(), FORWARD, REFERENCE)
    assert found.not_run == [results.NotRun(FORWARD.name, REFERENCE, "no time was left for it")]


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        (VIT, replace(FORWARD, config={"input_size": (8, 48)}), "a patch of 16 x 16 is larger"),
        (AST, replace(FORWARD, config={"channels": 3}), "AST takes one channel, not 3"),
        (REFERENCE, replace(FORWARD, precision="tf32"), "TF32 is a mode"),
        (cases.ON_TRITON, FORWARD, "CUDA device"),
        (cases.ON_PYTORCH, FORWARD, "it is SepTr here"),
        (VIT, replace(FORWARD, config={"channels": 3}), None),
        (FUSED, FORWARD, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(name: str, case: Case, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = models.why_not(name, case, CPU)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("name", ["uneven pooling", "single full head", "wide heads"])
@pytest.mark.parametrize("kind", [baselines.FusedAttention, baselines.MergedAttention])
def test_baselines_compute_the_same(kind: type[baselines.FusedAttention], name: str) -> None:
    from support.compare import relative_error

    from septr_fast import reference

    plain, other = (reference.SepTr(**shapes.SMALL[name]).double() for _ in range(2))
    baselines.with_attention(other, kind)
    other.load_state_dict(plain.state_dict())
    first = plain.transformer[0]
    x = torch.randn(2, first.channels, *first.input_size, dtype=torch.float64)
    assert relative_error(other(x), plain(x)) < 1e-12
    assert relative_error(baselines.fold(other).eval()(x), plain(x)) < 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_the_fastest_attention_is_taken(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import SDPBackend

    shape, tried = (2, 2, 5, 8), []

    def seconds(call: Any, device: torch.device) -> float:
        call()
        return [3.0, 1.0][tried.append(call) or len(tried) <= baselines.TRIALS]

    monkeypatch.setattr(baselines, "seconds", seconds)
    assert baselines.fastest_attention(shape, shape, torch.float32, CPU, training) == SDPBackend.FLASH_ATTENTION
    assert len(tried) == 2 * baselines.TRIALS
    monkeypatch.setattr(baselines, "KERNELS", baselines.KERNELS[::-1])
    tried.clear()
    assert baselines.fastest_attention(shape, shape, torch.float32, CPU, training) == SDPBackend.MATH


def test_folded_circuits_are_not_used_in_training() -> None:
    model = baselines.fold(models.build(MERGED, STEP, CLASSES, CPU, smoke=True))
    merged = next(module for module in model.modules() if isinstance(module, baselines.MergedAttention))
    x = torch.randn(1, 4, 16)
    before = merged(x)
    with torch.no_grad():
        merged.to_qkv.weight *= 2
    assert not torch.equal(merged(x), before)


@pytest.mark.parametrize(("name", "millions"), [(VIT, 85.3), (cases.VIT_TINY, 5.4), (AST, 85.4), (cases.AST_TINY, 5.4)])
def test_sizes_of_vit_and_ast(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = models.build(name, Case(cases.FORWARD, "default", {}, 1), CLASSES, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_models_start_alike_and_take_the_same_step() -> None:
    names = (REFERENCE, OURS, RECOMPUTING)
    x, labels = torch.randn(2, 1, *STEP.size), torch.tensor([1, 2])
    built = [models.build(name, STEP, 5, CPU) for name in names]
    start = models.build(REFERENCE, STEP, 5, CPU).state_dict()
    for model in built:
        models.task(model, STEP, CPU)(x, labels)
    for key, value in built[0].state_dict().items():
        assert not torch.equal(value, start[key]), key
        for model in built[1:]:
            torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=3e-4)


def test_a_task_runs_in_its_precision() -> None:
    case = replace(FORWARD, precision="autocast")
    seen = []
    model = models.build(REFERENCE, case, CLASSES, CPU)
    model.fc.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    models.task(model, case, CPU)(torch.randn(1, 1, *case.size))
    assert seen == [torch.bfloat16]
    assert models.dtype(replace(case, precision="float16")) == torch.float16
    before = torch.get_float32_matmul_precision()
    with models.precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of more clips than are read, all different."""
    folder = tmp_path_factory.mktemp("clips")
    for word in ("no", "yes"):
        (folder / word).mkdir()
        for index in range(data.CLIPS):
            wave = torch.sin(torch.arange(16000) * (0.01 + 0.013 * index + 0.005 * (word == "yes")))
            soundfile.write(folder / word / f"{index}.wav", wave.numpy(), 16000)
    return folder


@pytest.mark.parametrize("batch", [1, data.CLIPS // 2, data.CLIPS, 2 * data.CLIPS])
def test_clips_change_from_call_to_call_and_come_again(batch: int, clips: Path) -> None:
    case = replace(FORWARD, batch=batch)
    source = Source(lambda: clips, CPU)
    assert source.shows_clips(case)
    first, again = (source.batches(case, torch.float32) for _ in range(2))
    before = next(first)
    assert all(torch.equal(x, y) for x, y in zip(before, next(again), strict=True))
    for _ in range(3):
        after = next(first)
        assert not torch.equal(after[0], before[0])
        assert after[0].shape == before[0].shape
        before = after


def test_inputs_change_from_call_to_call_and_come_again() -> None:
    source = Source(None, CPU)
    for case in (FORWARD, replace(FORWARD, group=cases.BLOCK)):
        first, again = (source.batches(case, torch.float32) for _ in range(2))
        one, two = next(first), next(first)
        assert not torch.equal(one[0], two[0])
        assert all(torch.equal(x, y) for x, y in zip(one, next(again), strict=True))


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "autocast"])
@pytest.mark.parametrize("name", [OURS, REFERENCE])
def test_steps_go_on_in_every_precision(name: str, precision: str) -> None:
    case = replace(STEP, precision=precision)
    model = models.build(name, case, CLASSES, CPU)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    task, stream = models.task(model, case, CPU), Source(None, CPU).batches(case, models.dtype(case))
    for _ in range(5):
        logits = task(*next(stream))
    assert logits.isfinite().all()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert any(not torch.equal(value, start[key]) for key, value in model.state_dict().items())


def test_a_run_that_is_cut_off_keeps_what_it_found(tmp_path: Path) -> None:
    stop = "import os; from benchmarks.suite import runner; run = runner.Runner.run; seen = []\n"
    stop += "def once(*given): seen.append(run(*given)) if not seen else os._exit(9)\n"
    stop += "runner.Runner.run = once; import pytest; pytest.main()"
    options = ("benchmarks/test_models.py", "--smoke", "--audio", "noise", "--out", str(tmp_path), "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[1:] = {options!r}\n{stop}"], cwd=ROOT, check=False
    )
    assert done.returncode == 9
    assert [result.model for result in results.load(tmp_path / "results.json").results] == [OURS]


def test_kernels_of_the_default_step_are_counted() -> None:
    found = {kernel.name: kernel for kernel in roofline.kernels(CPU)}
    forward, backward = found["mlp_fwd_kernel"], found["mlp_bwd_kernel"]
    assert backward.launches == forward.launches
    assert 2 * backward.flops == 3 * forward.flops
    tokens = 8 * 128 * 128 * 5 + 8 * 128 * 5
    assert forward.flops == 4 * tokens * 256 * 256
    assert forward.case == "training step, default, batch 8, bfloat16, counted for sm_90"
    assert {kernel.precision for kernel in found.values()} == {"bfloat16"}
