"""The short form of the accuracies, and that it finds what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from trust.fuzzing import operators as fuzz_operators
from trust.life import curves
from trust.outcome import ShortForm, silent
from trust.parts import accuracy

from septr_fast.passes.torch import passes as torch_passes


def test_none_wrong(short_form: ShortForm, device: torch.device, one_thread: None) -> None:
    if device.type != "cpu":
        pytest.skip("shapes are sized for the interpreter")
    outcome = short_form(accuracy)
    assert outcome.wrong == []
    assert outcome.tried >= 300


def test_no_plan_is_tried_twice() -> None:
    assert accuracy.plans(full=False) == {None: list(accuracy.MODELS)}
    tried = accuracy.plans(full=True)
    assert "class-only" not in tried
    assert len(tried["low-rank"]) == 1


def test_every_row_names_a_rule_that_the_page_explains() -> None:
    names = {measure.__name__ for _, _, _, measure in accuracy.sources(full=True)}
    assert names == set(accuracy.RULES)


def test_ratios() -> None:
    oracle = torch.tensor([1.0, 2.0], dtype=torch.float64)
    triple = ({"x": oracle + 3}, {"x": oracle + 1.5}, {"x": oracle})
    assert accuracy.ratios(triple) == {"x": (2.0, 2.0)}
    assert accuracy.ratios(({"x": oracle}, {"x": oracle}, {"x": oracle})) == {}


def test_finds_a_result_that_is_rounded_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def sources(full: bool) -> Any:
        case = accuracy.operator_case("normalize", ("float32", "float32"), 1.0)
        yield "operator normalize", "float32", [lambda seed: accuracy.operator_triple(case, seed)], accuracy.by_rule

    monkeypatch.setattr(accuracy, "sources", sources)
    cases = fuzz_operators.normalization_cases
    normalize = cases.normalize
    with accuracy.launch.override(accuracy.TILES):
        assert accuracy.measured(False, silent)[2] == []
        monkeypatch.setattr(cases, "normalize", lambda *given: normalize(*given).half().float())
        assert "hat" in accuracy.measured(False, silent)[2][0]


def test_finds_training_that_goes_another_way(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    branch = torch_passes.mlp_sublayer

    def faulty(*given: Any) -> Tensor:
        return 4 * branch(*given)

    monkeypatch.setattr(torch_passes, "mlp_sublayer", faulty)
    assert curves.train_beside_the_reference(5, silent)[1]
