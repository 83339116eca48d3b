"""Compiled kernels, executed: the short form, and what the part makes of what it is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from support.execution import planting, trials
from trust.outcome import ShortForm
from trust.parts import execution


def test_execution(short_form: ShortForm) -> None:
    outcome = short_form(execution)
    assert outcome.wrong == []
    assert outcome.figures["of these executed, the others having the instructions of one of them"] == 3
    assert outcome.figures["kinds of planted faults"] >= 12
    kernels = {(row["pass"], row["kernel"]): row for row in outcome.figures["kernels"]}
    backward = {"axis_attention_bwd_query", "axis_attention_bwd_key", "mlp_bwd", "normalize_bwd", "class_query_bwd"}
    for name in trials.SHORT[:2]:
        ran = {kernel for of, kernel in kernels if of == name}
        assert ran == {"normalize", "axis_attention_fwd", "class_query_fwd", "mlp_fwd", *backward}
        assert all(kernels[name, kernel]["tensor cores"] > 0 for kernel in ran - {"normalize", "normalize_bwd"})
    assert "low_rank_fwd" in {kernel for _, kernel in kernels}


def told(**changes: Any) -> dict[str, Any]:
    return {"name": "merged", "fault": None, "share": 0.5, "worst": "grid", **changes}


@pytest.mark.parametrize(
    ("one", "wrong"),
    [
        (told(), None),
        ({"name": "merged, sm_89", "as": "merged, sm_86"}, None),
        (told(fault="line 7: global memory out of bounds"), "merged: line 7: global memory out of bounds"),
        (told(share=1.01), "merged: 1.01 times the error that is allowed, in grid"),
        (told(share=float("nan")), "nan times"),
        (told(share=0.0), "0.00 times"),
    ],
)
def test_what_is_wrong_with_a_trial(one: dict[str, Any], wrong: str | None) -> None:
    found = execution.judged(one)
    assert len(found) == (wrong is not None)
    assert all(wrong in line for line in found)


def fault(kernel: str = "mlp_fwd_wide", found: str = "wrong", **changes: Any) -> dict[str, Any]:
    return {
        "kernel": kernel,
        "fault": "an exponential dropped",
        "place": 0,
        "of": 3,
        "found": found,
        "same": False,
        **changes,
    }


def test_planted_faults_that_are_missed() -> None:
    assert execution.missed([]) == ["no fault was planted"]
    assert execution.missed([fault()] * 20) == []
    assert execution.missed([*[fault()] * 20, fault(found="not found")]) == []
    (unexplained,) = execution.missed([*[fault()] * 20, fault("normalize", found="not found")])
    assert unexplained == "normalize, place 0 of 3: an exponential dropped, and it was not found"
    assert execution.missed([*[fault()] * 20, fault("normalize", found="not found", same=True)]) == []
    assert "3 of 23" in execution.missed([*[fault()] * 20, *[fault(found="not found")] * 3])[-1]


@pytest.mark.parametrize("changed", [None, "logits", "cls_token", "transformer.0.transformer_h.layers.0.1.norm.bias"])
def test_whole_models_are_judged_by_logits_and_all_gradients(changed: str | None) -> None:
    trial = trials.TRIALS["model, direct, bfloat16, sm_90"]
    case: Any = trial.case()
    plain = trial.results(case, "torch")
    oracle = trial.results(case.changed(Tensor.double, torch.float64), "torch")
    found = {name: 1.5 * x if name == changed else x for name, x in plain.items()}
    share, worst = trial.largest(found, plain, oracle)
    assert (share > 1) is (changed is not None)
    assert changed is None or worst == ("logits" if changed == "logits" else "gradients")
    assert trial.largest({}, plain, oracle) == (0.0, "")


def test_builds_of_one_are_those_of_the_other() -> None:
    ran = {name: told(name=name, builds=["mlp_fwd BLOCK_M=64 warps=4 stages=2"]) for name in trials.SHORT[:1]}
    same = {"merged, bfloat16, sm_89": {"name": "merged, bfloat16, sm_89", "as": trials.SHORT[0]}}
    assert {(dtype, arch) for _, dtype, arch in execution._builds({**ran, **same})} == {
        ("bfloat16", 80),
        ("bfloat16", 89),
    }


PTX = "\tbar.sync 0;\n\tadd.rn.f32 %r1, %r2, %r3;\n\tbar.sync 0;\n\t@%p1 st.global.b32 [%rd1], %r1;\n"


@pytest.mark.parametrize(
    ("what", "count", "changed"),
    [
        ("a barrier dropped", 2, PTX[::-1].replace("\n\tbar.sync 0;"[::-1], "", 1)[::-1]),
        ("a sum turned", 1, PTX.replace("add", "sub")),
        ("a mask turned", 1, PTX.replace("@%p1", "@!%p1")),
        ("a comparison turned", 0, None),
    ],
)
def test_faults_are_planted_where_they_are_meant_to_be(what: str, count: int, changed: str | None) -> None:
    text = f"{{\n{PTX}"
    assert planting.places(text, what) == count
    if changed is not None:
        assert planting.plant(text, what, count - 1) == f"{{\n{changed}"
