"""The short form of the fuzzing, and that it finds what is wrong; the stored cases are read, whole and right."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")
pytest.importorskip("triton")

from trust import corpus
from trust.fuzzing import chunks
from trust.fuzzing.cases import OperatorCase
from trust.fuzzing.models import check_model, check_torch_pass
from trust.fuzzing.operators import check_operator, check_triton_pass
from trust.outcome import ShortForm, silent
from trust.parts import fuzz

from septr_fast.passes.torch import merged_training
from septr_fast.passes.torch import passes as torch_passes

CHECKS = {
    "operators on Triton": check_operator,
    "passes on Triton": check_triton_pass,
    "models on Triton": check_model,
    "passes on PyTorch": check_torch_pass,
    "merged training passes in chunks": check_torch_pass,
    "models on PyTorch": check_model,
}
TRIED = {"operators on Triton": 12, "passes on Triton": 5, "models on Triton": 2}
"""How many of the stored cases; 20 where nothing is said. The stage `check` of `benchmarks.gpu` tries all on Triton."""

STORED = corpus.read()


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


def test_cases_of_every_level_are_stored_once() -> None:
    assert STORED.keys() == corpus.KINDS.keys() == CHECKS.keys()
    assert {name: len(cases) for name, cases in STORED.items()} == pytest.approx(corpus.COUNTS, rel=0.1)
    for name, cases in STORED.items():
        assert all(isinstance(case, corpus.KINDS[name]) for case in cases)
        assert len(set(cases)) == len(cases), name


def test_every_category_is_reached() -> None:
    reached = fuzz.count_reached({name: Counter(cases) for name, cases in STORED.items()})
    assert [name for own in fuzz.CATEGORIES.values() for name in own if not reached[name]] == []


def test_what_runs_on_a_gpu_reaches_all_that_kernels_can() -> None:
    on_triton = {name: Counter(cases) for name, cases in STORED.items() if name.endswith("Triton")}
    reached = fuzz.count_reached(on_triton)
    unreached = {name for own in fuzz.CATEGORIES.values() for name in own if not reached[name]}
    assert unreached == {"torch", "float64", "recomputation"}


@pytest.mark.parametrize("level", CHECKS)
def test_some_come_out_right(level: str, one_thread: None) -> None:
    count = TRIED.get(level, 20)
    for case in STORED[level][:: len(STORED[level]) // count][:count]:
        CHECKS[level](case)


def test_they_can_be_drawn_again(tmp_path: Path) -> None:
    counts = {"operators on Triton": 3, "passes on PyTorch": 3, "models on PyTorch": 3}
    drawn = corpus.draw(counts)
    assert all(len(drawn[name]) >= count - 1 for name, count in counts.items())
    corpus.write(drawn, tmp_path / "corpus.json")
    assert corpus.read(tmp_path / "corpus.json") == drawn


def test_cases_with_other_fields_are_refused(tmp_path: Path) -> None:
    content = json.loads(corpus.FILE.read_text(encoding="utf-8"))
    content["operators on Triton"]["fields"][0] = "another"
    file = tmp_path / "corpus.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"operators on Triton: expected cases with the fields .* draw them again"):
        corpus.read(file)
