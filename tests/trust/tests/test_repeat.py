"""The short form of the repetitions, and that it finds what is wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from trust.outcome import ShortForm
from trust.parts import repeat

from septr_fast.passes.torch import passes as torch_passes

ONE = repeat.Setting("wide", "torch", None, "float32")


def test_none_wrong(short_form: ShortForm, device: torch.device, one_thread: None) -> None:
    if device.type != "cpu":
        pytest.skip("models are sized for the interpreter")
    outcome = short_form(repeat)
    assert outcome.wrong == []
    assert outcome.tried >= 90
    assert outcome.figures["of these with 2 threads"] == 1


def test_no_two_models_are_the_same() -> None:
    found = []
    for setting in repeat.settings(full=True):
        model, _ = repeat.built(setting)
        found.append((replace(setting, formulation=None), [step.formulation for step in model.plan().steps]))
    assert len(found) > 40
    assert all(one not in found[:place] for place, one in enumerate(found))


def test_few_bits_of_two_threads_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum whose order follows the threads, which one run of three meets."""
    setting, threads = repeat.Setting("wide", "torch", None, "float32", threads=2), []
    branch = torch_passes.mlp_sublayer

    def faulty(*given: Any) -> Tensor:
        threads.append(torch.get_num_threads())
        y = branch(*given)
        return y.add(16 * torch.finfo(y.dtype).eps * y.detach()) if len(threads) == 6 else y

    monkeypatch.setattr(torch_passes, "mlp_sublayer", faulty)
    before = torch.get_num_threads()
    assert repeat.repeats(setting, repeat.forward_and_backward)
    assert set(threads) == {2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("results", [repeat.forward_and_backward, repeat.trained], ids=lambda each: each.__name__)
def test_finds_few_bits_in_one_run(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    branch, calls = torch_passes.mlp_sublayer, itertools.count()

    def faulty(*given: Any) -> Tensor:
        y = branch(*given)
        return y.add(16 * torch.finfo(y.dtype).eps * y.detach()) if next(calls) == 6 else y

    monkeypatch.setattr(torch_passes, "mlp_sublayer", faulty)
    assert repeat.repeats(ONE, results)


def test_nan_is_equal_to_itself_and_zeros_have_signs() -> None:
    x = {"x": torch.tensor([float("nan"), 0.0])}
    assert repeat.different(x, {"x": x["x"].clone()}) == []
    assert repeat.different(x, {"x": torch.tensor([float("nan"), -0.0])}) == ["x"]
