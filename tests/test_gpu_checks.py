"""Configurations alone and drawn cases, as the stage `check` tries them, find faults that are planted."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import poison
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.launch import Choice, Launch
from septr_fast.kernels.tables import TABLES, Row
from trust.outcome import silent

from benchmarks import gpu_check, gpu_corpus, gpu_figures, readme
from benchmarks.gpu_configurations import configurations, models, shipped, small_tiles
from benchmarks.timing import Budget
from septr_fast.workloads import workloads

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
    assert configurations(CPU, True, budget) == []
    assert budget.left_out[0].startswith("configurations: class-only along the width")


LEVEL = "operators on Triton"


def drawn(monkeypatch: pytest.MonkeyPatch, end: float = math.inf) -> list[dict[str, Any]]:
    """What is noted of two cases of the class attention."""
    from trust import fuzz

    monkeypatch.setitem(fuzz.LEVELS, LEVEL, fuzz.sought(fuzz.LEVELS[LEVEL], "operator class_attention"))
    lines: list[dict[str, Any]] = []
    found = gpu_corpus.check(LEVEL, 3, 2, end, lines.append)
    assert found == any(line["fault"] for line in lines)
    return lines


def test_drawn_cases_are_noted(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    with torch.device(device):
        assert drawn(monkeypatch) == [{"level": LEVEL, "fault": None}] * 2


def test_a_fault_in_a_drawn_case_is_told(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    from trust import fuzz_operators

    class_attention = fuzz_operators.class_attention

    def faulty(*operands: Any) -> tuple[Tensor, ...]:
        attended, *others = class_attention(*operands)
        return 1.01 * attended, *others

    monkeypatch.setattr(fuzz_operators, "class_attention", faulty)
    with torch.device(device):
        (wrong,) = drawn(monkeypatch)
    assert "operator='class_attention'" in wrong["fault"]
    assert "FaultError" in wrong["fault"]


def test_no_case_is_begun_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, end=0.0) == []


@pytest.mark.parametrize("name", gpu_corpus.LEVELS)
def test_drawn_cases_are_made_on_the_default_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where launches are recorded: what a case made elsewhere would meet tensors of two devices."""
    from trust import fuzz, fuzz_operators

    triple = fuzz_operators.operator_triple if name == "operators on Triton" else fuzz_operators.pass_triple
    monkeypatch.setattr(poison.Guarded, "check", lambda guarded: None)
    monkeypatch.setattr(torch, "equal", lambda one, other: True)
    devices: Counter[str] = Counter()

    def check(case: Any) -> bool:
        with torch.device("meta"), launch.record(90):
            devices.update(x.device.type for results in triple(case, 1) for x in results.values())
        return False

    judged = replace(fuzz.LEVELS[name], check=check)
    assert fuzz.search(judged, 1, 25, Counter(), silent, shrinking=False) == (0, None)
    assert devices.keys() == {"meta"}


def test_every_second_seed_takes_the_tiles_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from trust import fuzz

    taken: list[Any] = []

    def check(case: Any, tiles: Any = "small") -> bool:
        taken.append(tiles)
        return False

    name = "operators on Triton"
    monkeypatch.setitem(fuzz.LEVELS, name, replace(fuzz.LEVELS[name], check=check))
    for seed in (2, 3):
        gpu_corpus.check(name, seed, 2, math.inf, lambda line: None)
    assert taken == ["small", "small", {}, {}]


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


def test_the_readme_passes_over_checks(tmp_path: Path) -> None:
    """They are kept beside the benchmarks' results, for another page."""
    stored = Path(gpu_check.__file__).parent / "results"
    folder = tmp_path / "results"
    folder.mkdir()
    for file in stored.glob("*.json"):
        shutil.copy(file, folder)
    (folder / "check.json").write_text('{"stage": "check"}', encoding="utf-8")
    page = tmp_path / "README.md"
    page.write_text(f"{readme.START}{readme.END}", encoding="utf-8")
    readme.update(page, folder, drawing=False)
    assert "check.json" not in page.read_text(encoding="utf-8")
