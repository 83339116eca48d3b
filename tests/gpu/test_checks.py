"""Configurations alone, stored cases and repeated runs, as the stage `check` tries them, find planted faults."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kernels import poison
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.launch import Choice, Launch
from septr_fast.kernels.tables import TABLES, Row

from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import figures as gpu_figures
from benchmarks.gpu import processes
from benchmarks.gpu.checks import compiling
from benchmarks.gpu.checks import corpus as gpu_corpus
from benchmarks.gpu.checks.configurations import configurations, models, shipped, small_tiles
from benchmarks.measuring.timing import Budget
from benchmarks.suite import pages
from benchmarks.suite.shapes import FEW_TOKENS
from septr_fast.tuning.workloads import Workload, workloads

CPU = torch.device("cpu")
WIDTHS = [2**power for power in range(11)]


def served(row: Row, arch: int, itemsize: int) -> set[Choice]:
    """What a row is the first to serve."""
    choices = [Choice(row.kernel, itemsize, width) for width in WIDTHS]
    return {choice for choice in choices if first_row(choice, arch) is row}


def first_row(choice: Choice, arch: int) -> Row | None:
    for row in TABLES:
        fits = choice.itemsize <= row.itemsize and choice.width <= row.width
        if row.kernel == choice.name and arch in row.archs and fits:
            return row
    return None


@pytest.fixture(scope="module")
def used() -> set[Choice]:
    """What the passes of all models choose by, whatever their lengths."""
    found: set[Choice] = set()
    for dtype in (torch.bfloat16, torch.float32):
        for config in models(size=(1, 2)):
            for workload in workloads(config, [dtype], 1, CPU):
                found.update(choice for choice, _ in shipped(workload, 90))
    return found


@pytest.mark.parametrize("arch", launch.ARCHITECTURES)
def test_the_models_use_every_configuration_of_the_tables(arch: int, used: set[Choice]) -> None:
    for row in TABLES:
        for itemsize in (2, 4):
            wanted = served(row, arch, itemsize) if arch in row.archs else set()
            assert not wanted or wanted & used, (row, itemsize)


def test_small_tiles_serve_every_kernel() -> None:
    for arch in launch.ARCHITECTURES:
        found = small_tiles(arch)
        assert found.keys() == {row.kernel for row in TABLES}
        assert all(size <= 16 for config in found.values() for name, size in config.tiles.items() if "BLOCK" in name)
        assert found["attention_form"].tiles == {"FUSED": 0}


def spoil(monkeypatch: pytest.MonkeyPatch, spoils: Callable[[Launch], float | None]) -> None:
    """Add what `spoils` says to a value of the class attention's result."""
    run = launch.run

    def faulty(described: Launch, device: torch.device) -> None:
        run(described, device)
        error = spoils(described) if described.name == "class_attention_fwd" else None
        if error is not None:
            described.arguments["attended_ptr"].view(-1)[0] += error

    monkeypatch.setattr(launch, "run", faulty)


def try_configurations() -> dict[str, Any]:
    (entry,) = configurations(CPU, True, Budget(math.inf))
    return entry


SHIPPED = launch.lookup("class_attention_fwd", launch.UNKNOWN, 4, 16)


def has_shipped_tiles(described: Launch) -> bool:
    return all(described.config.tiles[name] == size for name, size in SHIPPED.tiles.items())


def test_a_wrong_configuration_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda described: 1.0 if has_shipped_tiles(described) else None)
    entry = try_configurations()
    assert (entry["kernel"], entry["tiles"], entry["warps"]) == ("class_attention_fwd", SHIPPED.tiles, SHIPPED.warps)
    (fault,) = entry["wrong"]
    assert "times the error that is allowed" in fault
    assert "class-only along the width" in fault
    assert "small tiles" not in fault
    assert (
        f"class_attention_fwd (BLOCK_K {SHIPPED.tiles['BLOCK_K']}, "
        in gpu_figures.faults({"configurations": [entry]})[0]
    )


def test_a_kernel_that_is_wrong_with_any_configuration_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda described: 1.0)
    assert try_configurations()["wrong"][0].endswith("and so it is with small tiles for all kernels")


def test_a_configuration_with_other_bits_in_every_run_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter(range(1000))
    spoil(monkeypatch, lambda described: next(errors) * 1e-7 if has_shipped_tiles(described) else None)
    assert "differs from run to run" in try_configurations()["wrong"][0]


def test_configurations_keep_to_the_budget() -> None:
    budget = Budget(-1)
    assert list(configurations(CPU, True, budget)) == []
    assert budget.left_out[0].startswith("configurations: class-only along the width")


def stored(count: int = 2) -> list[gpu_corpus.Trial]:
    """Stored cases of the class attention."""
    of_operators = [trial for trial in gpu_corpus.trials() if trial.level == "operators on Triton"]
    return [trial for trial in of_operators if trial.case.operator == "class_attention"][:count]


def checked(chosen: list[gpu_corpus.Trial], end: float = math.inf) -> tuple[int, list[dict[str, Any]]]:
    """The status, and what is noted."""
    lines: list[dict[str, Any]] = []
    return gpu_corpus.check(chosen, end, lines.append), lines


def test_stored_cases_are_noted(device: torch.device) -> None:
    with torch.device(device):
        assert checked(stored()) == (0, [{"level": "operators on Triton", "fault": None}] * 2)


def test_a_fault_in_a_stored_case_is_told_and_the_others_are_tried(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    from trust.fuzzing import operators as fuzz_operators

    class_attention = fuzz_operators.class_attention

    def faulty(*operands: Any) -> tuple[Tensor, ...]:
        attended, *others = class_attention(*operands)
        return 1.01 * attended, *others

    monkeypatch.setattr(fuzz_operators, "class_attention", faulty)
    with torch.device(device):
        status, lines = checked(stored(3))
    assert status == 0
    assert [("operator='class_attention'" in line["fault"], "FaultError" in line["fault"]) for line in lines] == [
        (True, True)
    ] * 3


def test_nothing_is_tried_on_a_device_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Any) -> bool:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(processes, "is_lost", lambda device: True)
    status, lines = checked([trial._replace(judge=broken) for trial in stored()])
    assert (status, len(lines)) == (processes.LOST, 1)


def test_no_case_is_begun_when_the_time_is_over() -> None:
    assert checked(stored(), end=0.0) == (0, [])


def test_cases_that_there_was_no_time_for_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    budget = Budget(gpu_corpus.GRACE)
    monkeypatch.setattr(processes, "finish", lambda process, limit: process.wait())
    found = gpu_corpus.corpus(CPU, True, budget, tmp_path)
    assert found == {"stored": 3, "cases": {}, "wrong": [], "unfinished": []}
    assert budget.unfinished == ["corpus: 3 of 3 cases of part 0 of 1"]


@pytest.mark.parametrize("name", gpu_corpus.LEVELS)
def test_stored_cases_are_made_on_the_default_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where launches are recorded: what a case made elsewhere would meet tensors of two devices."""
    from trust.fuzzing import models as fuzz_models
    from trust.fuzzing import operators as fuzz_operators

    triples = {
        "operators on Triton": fuzz_operators.operator_triple,
        "passes on Triton": fuzz_operators.pass_triple,
        "models on Triton": fuzz_models._model,
    }
    monkeypatch.setattr(poison.Guarded, "check", lambda guarded: None)
    monkeypatch.setattr(torch, "equal", lambda one, other: True)
    devices: Counter[str] = Counter()
    monkeypatch.setattr(fuzz_models, "farther", lambda plains, exact: plains[0])
    for trial in gpu_corpus.trials(0, 4):
        if trial.level == name and "empty batch" not in trial.case.categories():
            with torch.device("meta"), launch.record(90):
                devices.update(x.device.type for results in triples[name](trial.case, 1) for x in results.values())
    assert devices.keys() == {"meta"}


def test_every_second_case_takes_the_tiles_of_the_tables() -> None:
    judges = Counter((trial.level, isinstance(trial.judge, partial)) for trial in gpu_corpus.trials())
    for level in ("operators on Triton", "passes on Triton"):
        assert abs(judges[level, True] - judges[level, False]) <= 1
    assert not judges["models on Triton", True]
    assert all(
        trial.judge.keywords == {"tiles": {}} for trial in gpu_corpus.trials() if isinstance(trial.judge, partial)
    )


def test_each_part_of_the_cases_has_its_share_of_every_level() -> None:
    parts = [gpu_corpus.trials(part, 16) for part in range(16)]
    for trials in parts:
        assert {trial.level for trial in trials[:12]} == set(gpu_corpus.LEVELS)
    of_parts = Counter(trial.case for trials in parts for trial in trials)
    assert of_parts == Counter(trial.case for trial in gpu_corpus.trials())


def small_pass() -> Workload:
    """That takes the least time in the interpreter."""
    return next(one for one in workloads(FEW_TOKENS, [torch.float32], 1, CPU) if one.formulation == "class-only")


@pytest.mark.parametrize(("seconds", "runs"), [(-1, 0), (1e9, 1)])
def test_runs_that_there_was_no_time_for_are_not_passed(
    seconds: float, runs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "workloads", lambda *_: [small_pass()])
    found = gpu_check.measure(CPU, True, Budget(seconds), tmp_path, ("repeat",))
    (entry,) = found["repeat"]
    assert (entry["runs"], entry["wanted"], found["passed"]) == (runs, 1, runs == 1)
    assert found["unfinished"] == ([] if runs else [f"repeat {entry['pass']}: 1 of 1 runs"])
    assert gpu_figures.faults(found) == ([] if runs else ["repeated runs: none done"])
    assert gpu_check.summary(found).endswith("\npassed" if runs else "\nNOT passed: 1 faults, 1 unfinished")


def test_runs_are_cut_short_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at every so often, and what was done by then counts."""
    clock = iter([1.0, 1.0, -1.0])
    monkeypatch.setattr(Budget, "left", property(lambda budget: next(clock)))
    monkeypatch.setattr(gpu_check, "LOOK_AT_CLOCK", 2)
    assert gpu_check._repeat(small_pass(), 1000, Budget(0)) == (4, 0)


def test_a_run_with_other_bits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.0, 0.0, 1.0, 0.0])
    spoil(monkeypatch, lambda described: next(errors) or None)
    workload = small_pass()
    monkeypatch.setattr(workload.__class__, "run", lambda workload: {"y": forward(workload)})
    assert gpu_check._repeat(workload, 3, Budget(math.inf)) == (3, 1)


def forward(workload: Workload) -> Tensor:
    with torch.no_grad():
        return workload._forward("triton")["cls_token"]


def test_what_calls_launch_is_compiled_at_once_and_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[set[str], int]] = []
    monkeypatch.setattr(launch, "architecture", lambda device: 90)
    monkeypatch.setattr(launch, "run", lambda described, device: pytest.fail("it runs"))
    monkeypatch.setattr(
        compiling, "compile_ahead", lambda launches, device, jobs: compiled.append(({x.name for x in launches}, jobs))
    )
    compiling.compile_calls([small_pass().run], torch.device("cuda"), jobs=3)
    ((names, jobs),) = compiled
    assert jobs == 3
    assert {"class_attention_fwd", "class_key_bwd"} <= names
    compiling.compile_calls([lambda: pytest.fail("it is called")], CPU)


def test_repeated_passes_are_compiled_before_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(gpu_check, "compile_calls", lambda calls, device: order.append(f"compile {len(calls)}"))
    monkeypatch.setattr(gpu_check, "_repeat", lambda workload, times, budget: order.append("run") or (times, 0))
    found = list(gpu_check.repeat(CPU, True, Budget(math.inf)))
    assert order == [f"compile {len(found)}", *["run"] * len(found)]


def test_results_are_kept_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An entry at a time, so that a stage that is ended from outside has what it found."""

    def two(device: torch.device, tiny: bool, budget: Budget, out: Path) -> Iterator[int]:
        yield 1
        yield 2
        raise ArithmeticError("behind them")

    kept: list[Any] = []
    part = gpu_check.Part
    monkeypatch.setattr(gpu_check, "PARTS", {"configurations": part(two, 1), "stream": part(lambda *_: True, 1)})
    monkeypatch.setattr(gpu_figures, "_READERS", {"stream": gpu_figures._stream})
    found = gpu_check.measure(
        CPU, True, Budget(9), tmp_path, keep=lambda results: kept.append(list(results.get("configurations", [])))
    )
    assert kept == [[1], [1, 2], [1, 2], [1, 2]]
    assert found["configurations"] == [1, 2]
    assert "ArithmeticError: behind them" in found["errors"]["configurations"]


def test_a_part_that_raises_leaves_the_others_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise ArithmeticError("of the part")

    times: list[float] = []

    def timed(device: torch.device, tiny: bool, budget: Budget, out: Path) -> bool:
        times.append(budget.left)
        return True

    part = gpu_check.Part
    monkeypatch.setattr(
        gpu_check, "PARTS", {"graphs": part(broken, 1), "stream": part(timed, 2), "corpus": part(timed, 1)}
    )
    budget = Budget(100)
    found = gpu_check.measure(CPU, True, budget, tmp_path, ("graphs", "stream"))
    assert found["stream"] is True
    assert found["passed"] is False
    assert gpu_figures.faults(found) == ["graphs: ArithmeticError: of the part"]
    assert 90 < times[0] <= 100
    assert budget.left_out == ["corpus: not asked for"]
    assert "other bits" not in gpu_check.summary(found)
    assert "other bits" in gpu_check.summary({"stream": False, "graphs": {"inference": True}})


def test_the_results_page_passes_over_checks(tmp_path: Path) -> None:
    """They are kept beside the benchmarks' results, for another page."""
    folder = tmp_path / pages.RESULTS
    folder.mkdir(parents=True)
    for file in (pages.ROOT / pages.RESULTS).glob("*.json"):
        shutil.copy(file, folder)
    (folder / "check.json").write_text('{"stage": "check"}', encoding="utf-8")
    (tmp_path / pages.README).write_text(f"{pages.START}{pages.END}", encoding="utf-8")
    pages.update(tmp_path, drawing=False)
    for page in (pages.README, pages.PAGE):
        assert "check.json" not in (tmp_path / page).read_text(encoding="utf-8")
    assert not (folder / "check.csv").exists()
