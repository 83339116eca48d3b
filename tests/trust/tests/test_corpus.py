"""The stored cases: they are read, reach every category, come out right, and can be drawn again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from trust import corpus
from trust.fuzzing.models import check_model, check_torch_pass
from trust.fuzzing.operators import check_operator, check_triton_pass

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


def test_cases_of_every_level_are_stored_once() -> None:
    assert STORED.keys() == corpus.KINDS.keys() == CHECKS.keys()
    assert {name: len(cases) for name, cases in STORED.items()} == pytest.approx(corpus.COUNTS, rel=0.1)
    for name, cases in STORED.items():
        assert all(isinstance(case, corpus.KINDS[name]) for case in cases)
        assert len(set(cases)) == len(cases), name


def test_every_category_is_reached() -> None:
    fuzz = pytest.importorskip("trust.parts.fuzz")
    reached = fuzz.count_reached({name: Counter(cases) for name, cases in STORED.items()})
    assert [name for own in fuzz.CATEGORIES.values() for name in own if not reached[name]] == []


def test_what_runs_on_a_gpu_reaches_all_that_kernels_can() -> None:
    fuzz = pytest.importorskip("trust.parts.fuzz")
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
    pytest.importorskip("hypothesis")
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
