"""What is not read as weights: widths that no weight shows, calls of a class's own, hooks of all modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from septr_fast.algebra.plan import WRITTEN

CONFIG = {**SMALL["wide"], "channels": 3}
"""2 heads of 4."""
FORMULATIONS = [None, "direct", "merged"]
pytestmark = pytest.mark.usefixtures("one_thread")


def attention(model: Any) -> Any:
    return model.transformer[0].transformer_h.layers[0][0].fn


class CalledOtherwise(nn.Linear):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) + 1


def other_call(model: Any) -> None:
    torch.manual_seed(5)
    attention(model).to_qkv = CalledOtherwise(12, 24, bias=False).double()


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "heads alone": (lambda m: setattr(attention(m), "heads", 4), "to_qkv gives 24 values, not 3 for each of 16"),
    "temperature": (lambda m: setattr(attention(m), "dim_head", 2), "to_qkv gives 24 values, not 3 for each of 4"),
    "called otherwise": (other_call, "to_qkv is CalledOtherwise"),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", CHANGES)
def test_what_weights_do_not_show_runs_as_written(name: str, formulation: str | None) -> None:
    change, reason = CHANGES[name]
    expected, model = pair(CONFIG, formulation=formulation)
    for one in (expected, model):
        change(one)
    x = spectrograms(CONFIG, batch=2)
    results = [gradients(one, x) for one in (model, expected)]
    assert worst(*results)[0] < 1e-10
    step = model.plan().steps[0]
    assert (step.formulation, reason in str(step.reason)) == (WRITTEN, True)


def half_as_much(_: nn.Module, __: Any, out: Any) -> Any:
    return out / 2 if isinstance(out, Tensor) else None


REGISTER: dict[str, Callable[[], Any]] = {
    "forward": lambda: modules.register_module_forward_hook(half_as_much),
    "before": lambda: modules.register_module_forward_pre_hook(
        lambda module, given: (given[0] + 1,) if isinstance(module, nn.GELU) else None
    ),
    "backward": lambda: modules.register_module_full_backward_hook(
        lambda module, grads, _: (grads[0] / 2,) if isinstance(module, nn.GELU) else None
    ),
}


@pytest.fixture(params=REGISTER)
def hooked(request: pytest.FixtureRequest) -> Iterator[None]:
    handle = REGISTER[request.param]()
    yield
    handle.remove()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_hooks_of_all_modules_are_called(formulation: str | None, hooked: None) -> None:
    expected, model = pair(CONFIG, formulation=formulation)
    x = spectrograms(CONFIG, batch=2)
    results = [gradients(one, x) for one in (model, expected)]
    assert worst(*results)[0] < 1e-10
    assert {step.formulation for step in model.plan().steps} == {WRITTEN}


def test_once_they_are_gone_weights_are_folded_again() -> None:
    expected, model = pair(CONFIG, formulation="merged")
    x = spectrograms(CONFIG, batch=2)
    for one in (expected, model):
        one.eval()
    with torch.no_grad():
        before, handle = model(x), REGISTER["forward"]()
        try:
            assert relative_error(model(x), expected(x)) < 1e-12
        finally:
            handle.remove()
        assert torch.equal(model(x), before)
    assert WRITTEN not in {step.formulation for step in model.plan().steps}


def test_a_counter_that_follows_names_changes_nothing() -> None:
    """PyTorch's counter of operations registers hooks that only look."""
    model, x = SepTr(**CONFIG, formulation="merged").eval(), spectrograms(CONFIG, batch=2).float()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
        assert WRITTEN not in {step.formulation for step in model.plan().steps}
    assert counter.get_total_flops() > 0
