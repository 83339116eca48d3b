"""The short form of the fuzzing, and that it finds what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from trust import fuzz
from trust.fuzz_cases import OperatorCase
from trust.judging import FaultError, by_norm, by_rule, judge
from trust.outcome import silent

from septr_fast import torch_backend


@pytest.fixture
def _on_a_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("cases are sized for the interpreter")


@pytest.mark.usefixtures("_on_a_cpu")
def test_none_wrong_and_every_category_reached() -> None:
    outcome = fuzz.run(full=False, progress=silent)
    assert outcome.wrong == []
    assert outcome.tried >= 300


def find(level: str, count: int, category: str | None = None) -> str | None:
    cases = fuzz.LEVELS[level] if category is None else fuzz.sought(fuzz.LEVELS[level], category)
    return fuzz.search(cases, 3, count, Counter(), silent)[1]


def test_what_is_not_drawn_by_chance_is_drawn_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every level one case is drawn by chance, the simplest."""
    checked: list[Any] = []
    one = {
        name: replace(level, short=1, check=lambda case: bool(checked.append(case)))
        for name, level in fuzz.LEVELS.items()
    }
    monkeypatch.setattr(fuzz, "LEVELS", one)
    wanted = {"operators on Triton": ("attention grouped", "empty batch"), "passes on PyTorch": ("no such thing",)}
    monkeypatch.setattr(fuzz, "CATEGORIES", wanted)
    outcome = fuzz.run(full=False, progress=silent)
    assert "grouped" in [case.form for case in checked if isinstance(case, OperatorCase)]
    assert outcome.figures["cases in each category"]["empty batch"] >= 1
    assert "category never reached: no such thing" in outcome.wrong


def test_finds_the_smallest_case_of_a_fault_in_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    branch = torch_backend.mlp_branch

    def faulty(x: Tensor, *others: Any) -> Tensor:
        return branch(x, *others) * (1.1 if x.shape[1] >= 4 else 1.0)

    monkeypatch.setattr(torch_backend, "mlp_branch", faulty)
    found = find("passes on PyTorch", 40)
    assert found is not None
    assert "FaultError" in found
    assert ", 3), heads=" in found


@pytest.mark.usefixtures("_on_a_cpu")
def test_finds_a_fault_in_a_kernels_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from trust import fuzz_operators

    cases = fuzz_operators.normalization_cases
    normalize = cases.normalize

    def faulty(x: Tensor, pos: Tensor | None, *others: Any) -> Tensor:
        return normalize(x if x.is_contiguous() else x.contiguous().flip(2), pos, *others)

    monkeypatch.setattr(cases, "normalize", faulty)
    found = find("operators on Triton", 12, "operator normalize")
    assert found is not None
    assert "operator='normalize'" in found
    assert "FaultError" in found


def draws(factor: float, count: int) -> Any:
    """`factor` times the errors of plain PyTorch, on `count` values."""

    def draw(seed: int) -> Any:
        random = torch.Generator().manual_seed(seed)
        oracle = {"x": torch.randn(count, generator=random).double()}
        errors = [torch.randn(count, generator=random) * size for size in (factor, 1.0)]
        return *({"x": (oracle["x"] + 1e-2 * error).float()} for error in errors), oracle

    return draw


def test_judging_pardons_chance_and_no_fault() -> None:
    assert [judge(draws(1.0, 4000), seed) for seed in range(20)] == [False] * 20
    assert any(judge(draws(1.0, 3), seed) for seed in range(20))
    for measure in (by_rule, by_norm):
        with pytest.raises(FaultError, match=r"times the error that is allowed"):
            judge(draws(3.0, 60), 0, measure)
        with pytest.raises(FaultError, match=r": inf times"):
            judge(draws(float("inf"), 3), 0, measure)
