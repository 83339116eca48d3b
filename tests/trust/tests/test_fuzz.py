"""The short form of the fuzzing, and that it finds what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")
pytest.importorskip("triton")

from trust.fuzzing import chunks
from trust.fuzzing.cases import OperatorCase
from trust.outcome import ShortForm, silent
from trust.parts import fuzz

from septr_fast.passes.torch import merged_training
from septr_fast.passes.torch import passes as torch_passes


@pytest.fixture
def _on_a_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("cases are sized for the interpreter")


@pytest.mark.usefixtures("_on_a_cpu")
def test_none_wrong_and_every_category_reached(short_form: ShortForm) -> None:
    outcome = short_form(fuzz)
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
    branch = torch_passes.mlp_sublayer

    def faulty(x: Tensor, *others: Any) -> Tensor:
        return branch(x, *others) * (1.1 if x.shape[1] >= 4 else 1.0)

    monkeypatch.setattr(torch_passes, "mlp_sublayer", faulty)
    found = find("passes on PyTorch", 40)
    assert found is not None
    assert "FaultError" in found
    assert ", 3), heads=" in found


def test_finds_a_fault_that_takes_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that forgets all chunks but the last; in chunks as shipped nothing is wrong."""
    add = merged_training._Sums.add

    def forgetting(sums: Any, name: str, *given: Tensor) -> None:
        sums._values.pop(f"{name}_weight", None)
        add(sums, name, *given)

    monkeypatch.setattr(merged_training._Sums, "add", forgetting)
    name = "merged training passes in chunks"
    assert "FaultError" in str(find(name, 20))
    level = fuzz.LEVELS[name]
    shipped = replace(level, strategy=level.strategy.map(lambda case: replace(case, chunk=None)))
    with chunks.counted() as counted:
        assert fuzz.search(shipped, 3, 20, Counter(), silent)[1] is None
    assert not counted[chunks.BY_HAND]


@pytest.mark.usefixtures("_on_a_cpu")
def test_finds_a_fault_in_a_kernels_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from trust.fuzzing import operators as fuzz_operators

    cases = fuzz_operators.normalization_cases
    normalize = cases.normalize

    def faulty(x: Tensor, pos: Tensor | None, *others: Any) -> Tensor:
        return normalize(x if x.is_contiguous() else x.contiguous().flip(2), pos, *others)

    monkeypatch.setattr(cases, "normalize", faulty)
    found = find("operators on Triton", 12, "operator normalize")
    assert found is not None
    assert "operator='normalize'" in found
    assert "FaultError" in found
