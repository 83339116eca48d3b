"""`accelerate`: what it keeps, where it looks, and what it reads."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.compare import relative_error, spectrograms
from support.originals import CONFIG, SeparableTr, WithClassToken, attention, original
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from septr_fast import SepTr, accelerate, reference

pytestmark = pytest.mark.usefixtures("one_thread")
POOLED = {**CONFIG, "input_size": (15, 9), "down_sample_input": (4, 2)}


def results(model: nn.Module) -> Tensor:
    """Of always the same input, in evaluation."""
    x = torch.linspace(-2, 3, 2 * 2 * 6 * 9, dtype=torch.float64).sin().view(2, 2, 6, 9)
    with torch.no_grad():
        return model.eval()(x)


def tensors(module: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(one)) for name, one in (*module.named_parameters(), *module.named_buffers())]


def test_the_same_parameters_in_the_same_order() -> None:
    model = original(depth=1).train()
    model.transformer[0].transformer_w.requires_grad_(False)
    model.transformer[0].transformer_h.eval()
    before, keys = tensors(model), list(model.state_dict())
    result = accelerate(model)
    assert type(result) is SepTr
    assert tensors(result) == before
    assert list(result.state_dict()) == keys
    assert result.fc is model.fc
    modes = dict(model.named_modules())
    shared = [name for name, _ in result.named_modules() if name in modes]
    assert "transformer.0.transformer_h.layers.0.0.fn" in shared
    assert all(result.get_submodule(name).training == modes[name].training for name in shared)
    assert result(spectrograms(CONFIG, batch=2)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    model = original().to(dtype)
    expected = results(copy.deepcopy(model).double())
    result = accelerate(model)
    assert {parameter.dtype for parameter in result.parameters()} == {dtype}
    assert relative_error(results(result.double()), expected) < 1e-12


def test_a_model_on_another_device_than_its_comparison() -> None:
    """There are no values on the meta device: without a comparison it is replaced all the same."""
    model = original().to("meta")
    with pytest.raises(TypeError, match="model: expected parameters with values to compare"):
        accelerate(model)
    result = accelerate(model, check=False)
    assert {parameter.device.type for parameter in result.parameters()} == {"meta"}


def test_everywhere_in_a_module() -> None:
    first, second = original(), original(depth=1)
    model = nn.ModuleDict({"a": nn.Sequential(first, nn.Identity()), "b": first, "c": second, "d": nn.Linear(2, 2)})
    expected = [results(copy.deepcopy(one)) for one in (first, second)]
    assert accelerate(model) is model
    assert model["a"][0] is model["b"]
    assert [type(model[name]) for name in "bc"] == [SepTr, SepTr]
    assert relative_error(results(model["b"]), expected[0]) < 1e-12
    assert relative_error(results(model["c"]), expected[1]) < 1e-12
    again = model["b"]
    assert accelerate(model)["b"] is again


def test_none_inside() -> None:
    with pytest.raises(ValueError, match="model: expected a SepTr of the original class somewhere inside, got Linear"):
        accelerate(nn.Linear(2, 2))


def test_the_reference_and_its_settings() -> None:
    options = {"first_axis": "width", "return_cls": True, "dropout_tr": 0.3}
    model = reference.SepTr(**POOLED, **options).double().eval()
    x = spectrograms(POOLED, batch=2)
    result = accelerate(copy.deepcopy(model), formulation="direct", backend="torch")
    assert {step.formulation for step in result.plan().steps} == {"direct"}
    assert result.blocks[0].backend == "torch"
    assert result.blocks[0].input_size == (15, 9)
    for part, whole in zip(result(x), model(x), strict=True):
        assert relative_error(part, whole) < 1e-12


@pytest.mark.parametrize("check", [True, False])
def test_the_class_token_beside_the_logits(check: bool) -> None:
    model = WithClassToken(**CONFIG).double()
    expected = model(spectrograms(CONFIG, batch=2))
    torch.manual_seed(20221107)
    model = WithClassToken(**CONFIG).double()
    result = accelerate(model, check=check, return_cls=None if check else True)
    for part, whole in zip(result(spectrograms(CONFIG, batch=2)), expected, strict=True):
        assert relative_error(part, whole) < 1e-12


@pytest.mark.parametrize(
    "head", [nn.Identity(), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4))], ids=["none", "two"]
)
def test_any_head(head: nn.Module) -> None:
    model = original()
    model.fc = head.double()
    expected = results(copy.deepcopy(model))
    result = accelerate(model)
    assert relative_error(results(result), expected) < 1e-12


def pruned(linear: nn.Linear) -> None:
    prune.random_unstructured(linear, "weight", amount=0.4)


def normed(linear: nn.Linear) -> None:
    parametrizations.spectral_norm(linear)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(linear: nn.Linear) -> None:
    parametrize.register_parametrization(linear, "weight", Doubled())


@pytest.mark.parametrize("change", [pruned, normed, doubled], ids=lambda change: change.__name__)
def test_layers_keep_what_was_done_to_them(change: Callable[[nn.Linear], None]) -> None:
    model = original().eval()
    for module in [one for one in model.transformer.modules() if isinstance(one, nn.Linear)]:
        change(module)
    expected = results(model)
    model.train()
    before, state = tensors(model), copy.deepcopy(model.state_dict())
    result = accelerate(model)
    assert tensors(result) == before
    assert all(torch.equal(value, state[name]) for name, value in result.state_dict().items())
    assert relative_error(results(result), expected) < 1e-12


def test_derived_weights_are_put_back() -> None:
    """Pruning keeps the masked weight as a plain attribute, which the comparison in float64 computes anew."""
    model = original().float()
    pruned(attention(model).to_qkv)
    weight = attention(model).to_qkv.weight
    assert attention(accelerate(model)).to_qkv.weight is weight


def test_other_eps() -> None:
    model = original()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.1
    assert relative_error(results(accelerate(copy.deepcopy(model))), results(model)) < 1e-12


def test_the_comparison_leaves_no_trace() -> None:
    """No random number is drawn, no hook called, no mode, buffer or setting changed; a failed call changes nothing."""
    called: list[nn.Module] = []
    model = nn.ModuleList([original(dropout_tr=0.5), original()])
    model[1].fc = nn.BatchNorm1d(8).double()
    model[0].register_forward_hook(lambda module, *_: called.append(module))
    model[0].fc.register_forward_hook(lambda module, *_: called.append(module))
    model[0].transformer[0].eval()
    other = original(heads=4)
    modes = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modules = list(model.modules())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="heads"):
        accelerate(nn.ModuleList([*model, other]), heads=2)
    assert list(model.modules()) == modules
    assert [module.training for module in model.modules()] == modes
    with torch.autocast("cpu", torch.bfloat16):
        accelerate(model)
    assert called == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_hooks_of_the_instance_and_its_head_are_called() -> None:
    model, called = original(), []
    handle = model.register_forward_hook(lambda module, inputs, output: called.append(type(module)) or output + 1)
    model.register_full_backward_hook(lambda *_: called.append("backward"))
    model.fc.register_forward_pre_hook(lambda *_: called.append("head"))
    model.register_state_dict_pre_hook(lambda *_: called.append("state"))
    expected = results(copy.deepcopy(model))
    called.clear()
    result = accelerate(model)
    assert relative_error(results(result), expected) < 1e-12
    result(spectrograms(CONFIG, batch=1).requires_grad_()).sum().backward()
    result.state_dict()
    assert called == ["head", SepTr, "head", SepTr, "backward", "state"]
    handle.remove()
    assert relative_error(results(result), expected - 1) < 1e-12


class NeedsItsSize(SeparableTr):
    """A variant that compares the input with a number of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 2, 6, 9))


def test_a_model_that_runs_at_its_own_size_only() -> None:
    model = NeedsItsSize(**CONFIG).double()
    expected = results(model)
    assert relative_error(results(accelerate(model)), expected) < 1e-12


class WidthFirst(SeparableTr):
    def features(self, x: Tensor) -> Tensor:
        for block in self.transformer:
            block.forward = self.turned(block)
        return super().features(x)

    @staticmethod
    def turned(block: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
        def forward(x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
            x = x.permute(0, 2, 3, 1)
            x = block.projection(x) if hasattr(block, "projection") else x
            x, token = block.along(x, token, block.pos_embedding_w, block.transformer_w)
            x, token = block.along(x.transpose(1, 2), token, block.pos_embedding_h, block.transformer_h)
            return x.permute(0, 3, 2, 1), token

        return forward


def test_the_width_first() -> None:
    model = WidthFirst(**CONFIG).double()
    expected = results(model)
    with pytest.raises(TypeError, match="model: expected what SepTr computes, got other results on a random input"):
        accelerate(model)
    assert relative_error(results(accelerate(model, first_axis="width")), expected) < 1e-12


def attentions(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if hasattr(module, "to_qkv"))


@pytest.mark.parametrize("kept", ["heads", "scale"])
def test_heads_from_what_is_stored(kept: str) -> None:
    model = original()
    expected = results(model)
    for one in attentions(model):
        vars(one).pop("scale" if kept == "heads" else "heads")
    result = accelerate(model, check=kept == "scale")
    assert relative_error(results(result), expected) < 1e-12


def test_what_cannot_be_read_is_asked_for() -> None:
    model = original()
    expected = results(model)
    for one in attentions(model):
        del one.heads, one.scale
    message = "model.transformer.0.transformer_h.layers.0.0.fn: it stores neither heads nor scale; say how many"
    with pytest.raises(TypeError, match=re.escape(message)):
        accelerate(model, check=False)
    assert relative_error(results(accelerate(model, heads=2, check=False)), expected) < 1e-12
    pooled = SeparableTr(**POOLED)
    message = "fit an input_size from (12, 8) to (15, 9); say which: accelerate(model, input_size=...)"
    with pytest.raises(TypeError, match=re.escape(message)):
        accelerate(pooled)
    assert accelerate(pooled, input_size=[15, 9]).blocks[0].input_size == (15, 9)
    pooled = SeparableTr(**POOLED)
    with pytest.raises(TypeError, match=re.escape("expected positions for input_size (16, 9) pooled by (4, 2)")):
        accelerate(pooled, input_size=(16, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 4}, "heads: model.transformer.0.transformer_h.layers.0.0.fn has 2, got 4"),
        ({"down_sample_input": 2}, "down_sample_input: model.transformer.0 has (4, 2), got (2, 2)"),
        ({"return_cls": True}, "return_cls: model returns the class token: False, got True"),
        ({"first_axis": "time"}, "first_axis: expected one of height, width, got 'time'"),
        ({"backend": "cuda"}, "backend: expected one of auto, torch, triton, got 'cuda'"),
        ({"input_size": 0}, "input_size: expected a positive int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        accelerate(SeparableTr(**POOLED), **{"input_size": (15, 9), **arguments})
