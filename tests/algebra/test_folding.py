"""Merged weights are never stale, and never where they do not belong."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from torch import nn

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from septr_fast.algebra import fold
from septr_fast.algebra.fold_cache import FoldCache
from septr_fast.algebra.folded import to_dtype
from septr_fast.algebra.merged import fold_merged
from septr_fast.algebra.plan import WRITTEN

CONFIG = SMALL["wide"]


def optimizer_step(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(spectrograms(CONFIG, 2)).sin().sum().backward()
    optimizer.step()


def fused_optimizer_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=True)
    model(spectrograms(CONFIG, 2)).sin().sum().backward()
    optimizer.step()


def load_checkpoint(model: nn.Module) -> None:
    model.load_state_dict(SepTr(**CONFIG).state_dict())


def load_by_assignment(model: nn.Module) -> None:
    model.load_state_dict(SepTr(**CONFIG).double().state_dict(), assign=True)


def change_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.transformer[1].transformer_h.layers[0][0].fn.to_qkv.weight.mul_(1.5)


def change_by_data(model: nn.Module) -> None:
    """As many exponential moving averages do: no version counter sees it."""
    for parameter in model.parameters():
        parameter.data.mul_(0.9).add_(0.01)


def change_one_value(model: nn.Module) -> None:
    model.transformer[0].transformer_h.layers[0][0].norm.bias.data[3] += 0.5


def change_through_numpy(model: nn.Module) -> None:
    model.transformer[0].transformer_w.layers[0][1].fn.net[3].weight.detach().numpy()[0, 0] += 0.5


def swap_data(model: nn.Module) -> None:
    parameter = model.transformer[0].transformer_w.layers[0][1].norm.weight
    parameter.data = parameter.data.flip(0) * 2


def replace_parameter(model: nn.Module) -> None:
    attention = model.transformer[0].transformer_w.layers[0][0]
    attention.norm.weight = nn.Parameter(attention.norm.weight.detach() * 2)


def change_class_token(model: nn.Module) -> None:
    model.cls_token.data.neg_()


def change_position(model: nn.Module) -> None:
    model.transformer[0].pos_embedding_h.data.neg_()


def change_projection(model: nn.Module) -> None:
    model.transformer[0].projection.weight.data.neg_()


def round_to_single(model: nn.Module) -> None:
    model.to(torch.float32).to(torch.float64)


CHANGES = [
    value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__
]


@pytest.mark.parametrize("formulation", [None, "direct", "merged"], ids=lambda name: name or "planned")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_never_stale(
    mode: Callable[[], torch.no_grad], change: Callable[[nn.Module], None], formulation: str | None
) -> None:
    expected, model = pair(CONFIG, formulation=formulation)
    expected.eval()
    model.eval()
    x = spectrograms(CONFIG, batch=2)
    with mode():
        before = model(x)
        assert torch.equal(model(x), before)
    change(model)
    expected.load_state_dict(model.state_dict())
    with mode():
        after = model(x)
        assert relative_error(after, expected(x)) < 1e-12
    assert not torch.equal(after, before)


def test_kept_across_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = pair(CONFIG, formulation="merged")
    calls = []
    monkeypatch.setattr(fold, "fold_merged", lambda transformer: calls.append(1) or fold_merged(transformer))
    x = spectrograms(CONFIG, batch=1)
    with torch.no_grad():
        for _ in range(3):
            model.eval()(x)
    assert len(calls) == 4
    model(x)
    assert len(calls) == 8, "with gradients the weights are folded inside the graph"


def test_kept_weights_serve_the_inputs_gradient() -> None:
    """Folded under inference mode first, then used where autograd saves them."""
    expected, model = pair(CONFIG)
    for module in (expected, model):
        module.eval().requires_grad_(False)
    x = spectrograms(CONFIG, batch=2)
    with torch.inference_mode():
        model(x)
    slopes = []
    for module in (expected, model):
        leaf = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(module(leaf).sum(), leaf)[0])
    assert relative_error(slopes[1], slopes[0]) < 1e-11


def test_copies_share_nothing_and_carry_nothing() -> None:
    _, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=1)
    with torch.no_grad():
        before = model.eval()(x)
        empty = len(pickle.dumps(SepTr(**CONFIG).double()))
        assert abs(len(pickle.dumps(model)) - empty) < 100
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
        change_by_data(model)
        for twin in copies:
            assert torch.equal(twin(x), before)
        assert not torch.equal(model(x), before)


def test_nothing_folded_is_in_the_state_dict() -> None:
    _, model = pair(CONFIG)
    keys = list(model.state_dict())
    with torch.no_grad():
        model.eval()(spectrograms(CONFIG, batch=1))
    assert list(model.state_dict()) == keys
    assert not list(model.buffers())


def test_cache_distinguishes_settings_and_nan() -> None:
    cache: FoldCache[int] = FoldCache()
    values = iter(range(10))
    weight = torch.ones(2)
    assert [cache.get(key, [weight], lambda: next(values)) for key in ("a", "a", "b", "b", "a")] == [0, 0, 1, 1, 2]
    weight[0] = float("nan")
    assert [cache.get("a", [weight], lambda: next(values)) for _ in range(2)] == [3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_folded_in_single_precision_and_rounded_once(dtype: torch.dtype) -> None:
    model = SepTr(**CONFIG).to(dtype)
    transformer = model.transformer[0].transformer_h
    merged = fold_merged(transformer)
    assert merged.query_weight.dtype == torch.float32
    exact = fold_merged(transformer.double())
    assert relative_error(merged.query_weight, exact.query_weight) < 1e-6
    assert to_dtype(merged, dtype).query_weight.dtype == dtype


class Named(nn.Parameter):
    """A class of parameters that takes no part in what PyTorch computes."""


def test_a_weight_of_a_class_of_its_own_is_folded() -> None:
    expected, model = pair(CONFIG)
    layer = model.transformer[0].transformer_h.sublayers[0].fn.to_qkv
    layer.weight = Named(layer.weight.detach())
    assert type(layer.weight) is Named
    assert WRITTEN not in {step.formulation for step in model.plan().steps}
    x = spectrograms(CONFIG, batch=2)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10
