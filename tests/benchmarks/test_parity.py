"""Nothing is timed whose results are wrong."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.runs.benchmark_runs import CLASSES, CPU, FORWARD, STEP, Timer, runner
from torch import nn

from benchmarks.suite import cases, models, parity
from benchmarks.suite.cases import OURS, REFERENCE, Case
from benchmarks.suite.data import Source


def off(change: float) -> Any:
    """A build function whose SepTr is off by `change` in one bias."""
    build = models.build

    def wrong(name: str, *arguments: Any, **options: Any) -> nn.Module:
        model = build(name, *arguments, **options)
        with torch.no_grad():
            model.transformer[1].transformer_w.layers[0][1].fn.net[3].bias[0] += change
        return model

    return wrong


@pytest.mark.parametrize("case", [FORWARD, STEP], ids=lambda case: case.group)
@pytest.mark.parametrize("change", [1e-4, float("nan")], ids=["slightly wrong", "NaN"])
def test_a_planted_wrong_result_is_refused(case: Case, change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    timer, found = Timer(), runner()
    found.run(timer, case, OURS)
    assert timer.timed >= 2
    monkeypatch.setattr(models, "build", off(change))
    timer = Timer()
    with pytest.raises(parity.ParityError, match="Nothing was timed"):
        found.run(timer, case, REFERENCE)
    assert timer.timed == 0
    assert [result.model for result in found.results] == [OURS]
    assert found.not_run == []


def small_batches_alone(change: float) -> Any:
    """A build function whose SepTr is off by `change` in batches beyond those that are compared."""
    build = models.build

    def wrong(name: str, *arguments: Any, **options: Any) -> nn.Module:
        model = build(name, *arguments, **options)
        model.register_forward_hook(lambda _, given, logits: logits + change * (len(given[0]) > parity.SAMPLES))
        return model

    return wrong


@pytest.mark.parametrize("planted", [off(1e-5), small_batches_alone(1e-3)], ids=["slightly wrong", "large batches"])
def test_a_wrong_result_in_a_largest_batch_is_refused(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case, timer, found = replace(STEP, group=cases.LARGEST), Timer(), runner(limit=24 << 20)
    found.run(timer, case, OURS)
    assert timer.timed >= 2
    assert found.results[0].batch > parity.SAMPLES
    monkeypatch.setattr(models, "build", planted)
    timer = Timer()
    with pytest.raises(parity.ParityError, match="Nothing was timed"):
        found.run(timer, case, OURS)
    assert timer.timed == 0


def test_compiled_code_and_large_batches_have_a_limit_of_their_own() -> None:
    off, wrong, undefined = (compared(value) for value in (9e-6, 1.1e-5, float("nan")))
    unit = torch.finfo(torch.float32).eps
    parity.check(off, unit, "loose", loose=True)
    for found, loose in ((off, False), (wrong, True), (undefined, True)):
        with pytest.raises(parity.ParityError, match="Nothing was timed"):
            parity.check(found, unit, "refused", loose=loose)


def compared(error: float, plain: float = 1e-7) -> parity.Comparison:
    return parity.Comparison(parity.Errors(error, None), parity.Errors(plain, None), 1.0)


def test_errors_on_several_batches_are_the_largest() -> None:
    found = parity.together([compared(1e-7, 3e-7), compared(2e-7, 1e-7)])
    assert found == parity.Comparison(parity.Errors(2e-7, None), parity.Errors(3e-7, None), 1.0)
    undefined = parity.together([compared(1e-7), compared(float("nan")), compared(1e-7)])
    assert undefined.found.outputs != undefined.found.outputs
    gradients = [parity.Comparison(*2 * [parity.Errors(0.0, error)], 1.0) for error in (2e-7, 1e-7)]
    assert parity.together(gradients).found == parity.Errors(0.0, 2e-7)


@pytest.mark.parametrize(
    ("calls", "change", "is_right"),
    [(1, 2e-6, True), (1, 1.0, False), (99, 2e-6, False)],
    ids=["a little on one batch", "far on one batch", "a little on all"],
)
def test_what_is_off_by_little_is_judged_on_other_batches(
    calls: int, change: float, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = models.build
    seen = itertools.count(1)

    def unlucky(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)
        model.register_forward_hook(lambda _, __, logits: logits + (change if next(seen) <= calls else 0.0))
        return model

    monkeypatch.setattr(models, "build", unlucky)
    timer = Timer()
    with nullcontext() if is_right else pytest.raises(parity.ParityError, match="the outputs are off"):
        runner().run(timer, FORWARD, OURS)
    assert bool(timer.timed) == is_right


def test_a_planted_wrong_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build

    def wrong(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)
        model.transformer[0].pos_embedding_h.register_hook(lambda gradient: gradient * 1.001)
        return model

    monkeypatch.setattr(models, "build", wrong)
    with pytest.raises(parity.ParityError, match="the gradients are off"):
        runner().run(Timer(), STEP, OURS)


@pytest.mark.parametrize("group", cases.PARTS)
def test_a_planted_wrong_part_is_refused(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build

    def wrong(*arguments: Any, **options: Any) -> nn.Module:
        part = build(*arguments, **options)
        for name in ("transformer_h", "transformer_w"):
            with torch.no_grad():
                getattr(part.block, name).layers[0][0].fn.to_qkv.weight[0, 0] += 0.5
        return part

    runner().run(Timer(), replace(FORWARD, group=group), OURS)
    monkeypatch.setattr(models, "build", wrong)
    with pytest.raises(parity.ParityError, match="the outputs are off"):
        runner().run(Timer(), replace(FORWARD, group=group), OURS)


def test_what_becomes_nan_while_it_is_timed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = itertools.count(1)
    build = models.build

    def late(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)
        model.register_forward_hook(lambda _, __, logits: logits if next(seen) < 4 else logits * float("nan"))
        return model

    monkeypatch.setattr(models, "build", late)
    found = runner()
    with pytest.raises(parity.ParityError, match="NaN or infinity came out of the last call"):
        found.run(Timer(), FORWARD, OURS)
    assert found.results == []


def test_samples_one_by_one_give_what_they_give_together() -> None:
    for case in (STEP, replace(FORWARD, group=cases.BLOCK)):
        model = models.plain(REFERENCE, case, CLASSES, CPU).double()
        *inputs, labels = next(Source(None, CPU).batches(case, torch.float64))
        wanted = labels if case.training else None
        together = parity.outcome(model, tuple(inputs), wanted)
        apart = parity.one_by_one(model, tuple(inputs), wanted)
        torch.testing.assert_close(apart.outputs, together.outputs, rtol=1e-12, atol=1e-12)
        assert (apart.gradient is None) == (together.gradient is None)
        if together.gradient is not None:
            torch.testing.assert_close(apart.gradient, together.gradient, rtol=1e-10, atol=1e-12)


def test_a_case_that_cannot_be_checked_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> parity.Outcome:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(parity, "exact", fail)
    found = runner()
    for name in (OURS, REFERENCE):
        with pytest.raises(pytest.skip.Exception):
            found.run(Timer(), FORWARD, name)
    assert [entry.model for entry in found.not_run] == [OURS, REFERENCE]
    assert {entry.reason for entry in found.not_run} == {"the check against float64 takes more memory than there is"}
