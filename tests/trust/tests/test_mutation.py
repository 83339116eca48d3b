"""Mutants: which faults are planted, that they act and are taken out again, and that each fate is told apart."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("hypothesis")
pytest.importorskip("triton")

from trust.mutants import killing, planting
from trust.mutants.equivalent import EQUIVALENT
from trust.mutants.killing import Case, Profile
from trust.mutants.mutators import CAST_DROPPED, Mutant, mutants, planted
from trust.outcome import ShortForm, silent
from trust.parts import mutation

from septr_fast.algebra.folded import accumulation_dtype
from septr_fast.algebra.mlp import fold_mlp
from septr_fast.passes.torch import merged_training
from septr_fast.reference import Transformer

SOURCE = '''
@triton.jit
def kernel(ptr, out_ptr, strides, SIZE: tl.constexpr):
    """Text."""
    offs = tl.arange(0, 16).to(tl.int64)
    x = tl.load(ptr + offs * strides[0], mask=offs < SIZE, other=0.0)
    for start in range(0, SIZE, 16):
        x = x + start.to(tl.float32)
    if SIZE == 1:
        x += tl.sum(x, 0)
    tl.store(out_ptr + offs, tl.where(x > 0, x, -x).to(out_ptr.dtype.element_ty))
'''
EXPECTED = {
    "mask dropped": ["tl.load(ptr + offs * strides[0])"],
    "other changed": ["tl.load(ptr + offs * strides[0], mask=offs < SIZE, other=1.0)"],
    "other dropped": ["tl.load(ptr + offs * strides[0], mask=offs < SIZE)"],
    "cast dropped": ["tl.arange(0, 16)"],
    "cast narrowed": ["start.to(tl.float16)"],
    "bound": ["offs <= SIZE", "x >= 0"],
    "condition": ["SIZE != 1"],
    "axis": ["strides[1]", "tl.sum(x, 1)"],
    "first round dropped": ["range(0 + 16, SIZE, 16)"],
    "last round dropped": ["range(0, SIZE - 16, 16)"],
    "function": ["tl.max(x, 0)"],
    "branch of a choice dropped": ["x", "-x"],
    "sign dropped": ["x"],
    "statement dropped": ["", "", ""],
}


@pytest.fixture(autouse=True)
def _on_a_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("mutants run in the interpreter")


def function(source: str) -> ast.FunctionDef:
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def named(name: str) -> Mutant:
    module, _, rest = name.partition(".")
    return next(mutant for mutant in planting.of((module, rest.partition(":")[0])) if mutant.name == name)


def test_faults_of_every_kind() -> None:
    found: dict[str, list[str]] = {}
    for mutant in mutants("module", function(SOURCE)):
        found.setdefault(mutant.kind, []).append(mutant.after)
    assert {kind: sorted(found[kind]) for kind in EXPECTED} == {kind: sorted(after) for kind, after in EXPECTED.items()}
    assert "x - start.to(tl.float32)" in found["arithmetic"]
    assert "17" in found["off by one"]
    assert "constant" not in found


def test_every_fault_is_another_source() -> None:
    node = function(SOURCE)
    sources = [ast.unparse(planted(node, mutant)) for mutant in mutants("module", node)]
    assert len(set(sources)) == len(sources)
    assert not any(source.startswith("@") or "Text" in source for source in sources)


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in planting.chosen(mutation.LONG)]
    assert len(names) == len(set(names)) == mutation.LONG


def test_every_function_has_a_mutant() -> None:
    assert {mutant.site for mutant in planting.chosen(mutation.LONG)} == set(planting.functions())


def test_every_kind_is_chosen() -> None:
    every, chosen = (
        Counter(mutant.kind for mutant in mutants)
        for mutants in (planting.everything(), planting.chosen(mutation.LONG))
    )
    assert chosen.keys() == every.keys()
    assert len(every) == mutation.KINDS
    for kind, count in every.items():
        least = 20 if kind in planting.TELLING else 7
        assert chosen[kind] >= min(count, least), kind


def test_a_kind_is_chosen_of_every_function() -> None:
    """Before it is chosen of one function again, but for the one mutant that each function has in any case."""
    every, chosen = (
        Counter((*mutant.site, mutant.kind) for mutant in mutants)
        for mutants in (planting.everything(), planting.chosen(mutation.LONG))
    )
    for kind in planting.TELLING:
        counts = [(chosen[place], count) for place, count in every.items() if place[2] == kind]
        open_ones = [some for some, count in counts if some < count]
        assert not open_ones or max(some for some, _ in counts) <= min(open_ones) + 2, kind


def test_a_change_leaves_the_choice_of_other_mutants_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planting.chosen(mutation.LONG)
    gone = before[100]
    rest = tuple(mutant for mutant in planting.everything() if mutant is not gone)
    monkeypatch.setattr(planting, "everything", lambda: rest)
    assert len(set(before) - set(planting.chosen(mutation.LONG))) <= 3


def test_a_mutant_acts_and_is_taken_out() -> None:
    transformer = Transformer(8, 2, 4, 8)
    before = fold_mlp(transformer).hidden_weight
    with planting.applied(
        named("folding.fold_mlp: arithmetic: weight * norm.weight.to(dtype) -> weight + norm.weight.to(dtype)")
    ):
        assert not torch.equal(fold_mlp(transformer).hidden_weight, before)
    assert torch.equal(fold_mlp(transformer).hidden_weight, before)


def test_a_mutant_of_a_method_acts_and_is_taken_out() -> None:
    mutant = named("merged_training._Sums.add: not transposed: grad.t() -> grad (2)")
    case = next(case for case in killing.cases(full=False) if case.kind.startswith("merged training"))
    with planting.called() as calls:
        case.check()
    assert {("merged_training", name) for name in ("_MergedPass.forward", "_MergedPass.backward", "_Sums.add")} <= calls
    assert ("folding", "fold_merged") in calls
    with planting.applied(mutant), pytest.raises(RuntimeError, match="cannot be multiplied"):
        case.check()
    case.check()


def test_training_runs_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of several samples."""
    chunks: list[list[tuple[slice, slice]]] = []
    places = merged_training.places
    monkeypatch.setattr(merged_training, "places", lambda *given: chunks.append(places(*given)) or chunks[-1])
    for case in killing.cases(full=False):
        if case.kind.startswith("merged training"):
            case.check()
    of_samples = [Counter(sample.start for sample, _ in one) for one in chunks]
    assert any(len(counts) > 1 and min(counts.values()) > 1 for counts in of_samples)


def test_kernels_fault_is_found_by_a_case() -> None:
    centred = "y - (tl.sum(y, 1) / WIDTH)[:, None]"
    mutant = named(f"normalization.standardize: arithmetic: {centred} -> {centred.replace('-', '+')}")
    cases = {case.name: case for case in killing.cases(full=False)}
    blind = Case("one", "blind", lambda: None)
    profiles = [Profile(case, frozenset(), 0.0) for case in (blind, cases["whole passes: class-only, fused 0"])]
    fate = mutation.fate(mutant, profiles)
    assert (fate.found, fate.by) == ("wrong result", profiles[1].case.name)


def test_fates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "SECONDS", 3.0)
    mutant = next(planting.of(("folding", "accumulation_dtype")))
    profiles = [Profile(Case("one", "a case", lambda: accumulation_dtype(torch.float32)), frozenset(), 0.0)]
    bodies = {
        None: "return dtype",
        "error": "return dtype.no_such_name",
        "crash": "import os; os._exit(3)",
        "no end": "while True: pass",
    }
    for expected, body in bodies.items():
        changed = function(f"def accumulation_dtype(dtype):\n    {body}\n")
        monkeypatch.setattr(planting, "planted", lambda *_, changed=changed: changed)
        assert mutation.fate(mutant, profiles).found == expected


def test_survivors_need_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = next(planting.of(("folding", "to_dtype")))
    survivor, killed = mutation.Fate(mutant, None, "", 3), mutation.Fate(mutant, "error", "a case", 1)
    few = "0 of 1 mutants are found, expected"
    assert mutation.judged([survivor], full=True).wrong == [f"survives: {mutant.name}", f"{few} 95%"]
    assert mutation.judged([survivor], full=False).wrong == [f"{few} 75%"]
    assert mutation.judged([survivor, *20 * [killed]], full=False).wrong == []
    monkeypatch.setattr(mutation, "EQUIVALENT", {mutant.name: "a reason"})
    assert (
        mutation.judged([survivor, *20 * [killed]], full=True).wrong[0].startswith("said to be equivalent, but found")
    )
    assert mutation.judged([survivor], full=True).wrong == [f"{few} 95%"]


def test_reasons_are_of_mutants_that_exist() -> None:
    assert set(EQUIVALENT) <= {mutant.name for mutant in planting.everything()}


def test_a_case_that_fails_by_itself_is_no_judge() -> None:
    with pytest.raises(killing.FaultError, match="fails on code without a mutant"):
        killing.profiled([Case("one", "a case", lambda: 1 // 0)], silent)


def test_order_of_cases() -> None:
    place = ("mlp", "load_bias")
    calls = frozenset([place])
    far = killing.ADDRESSING
    profiles = [Profile(Case(kind, f"{kind} {i}", lambda: None), calls, i) for kind in ("a", far) for i in (2, 1, 0)]
    others = [replace(profiles[0], calls=frozenset())]

    def names(mutant: Mutant, most: int) -> list[str]:
        able = mutation.ordered([*profiles, *others], mutant, Counter({f"{far} 1": 1}), most)
        return [one.case.name for one in able]

    cast, *_, other = sorted(planting.of(place), key=lambda mutant: mutant.kind != CAST_DROPPED)
    assert names(other, 6) == [f"{far} 1", "a 0", f"{far} 0", "a 1", "a 2", f"{far} 2"]
    assert names(other, 2) == ["a 0", f"{far} 0"]
    assert names(cast, 2) == [f"{far} 1", f"{far} 0", f"{far} 2", "a 0"]


def test_short_form(short_form: ShortForm) -> None:
    outcome = short_form(mutation)
    assert outcome.wrong == []
    assert outcome.tried == mutation.SHORT
