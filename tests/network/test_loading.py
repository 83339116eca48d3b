"""A state dict that does not load changes nothing, and one that does loads as PyTorch loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from septr_fast import SepTr, SepTrBlock, reference

SIZES: dict[str, Any] = {
    "input_size": (6, 8),
    "num_classes": 3,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "dim": 8,
}
BLOCK: dict[str, Any] = {"channels": 8, "input_size": (6, 8), "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}
OPTIONS = [{}, {"strict": False}, {"assign": True}, {"strict": False, "assign": True}]
MODULES = {"model": (lambda: SepTr(**SIZES), "fc.bias"), "block": (lambda: SepTrBlock(**BLOCK), "pos_embedding_h")}


@pytest.fixture(params=[False, True], ids=["copied", "swapped"])
def swapped(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether PyTorch swaps parameters for others, as it does one day by default."""
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(False)


def other(module: nn.Module, **changes: Tensor) -> dict[str, Tensor]:
    """A state dict of other values, and of another dtype."""
    return {**{key: (x + 1).double() for key, x in module.state_dict().items()}, **changes}


def seen(module: nn.Module) -> list[tuple[str, int, Any, bytes]]:
    """Names, identities, memory and bits of all parameters."""
    return [
        (name, id(x), (x.dtype, x.requires_grad, x.data_ptr()), x.detach().numpy().tobytes())
        for name, x in module.named_parameters()
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("build", "key"), MODULES.values(), ids=MODULES)
def test_a_misshapen_tensor_changes_nothing(
    build: Callable[[], nn.Module], key: str, options: dict[str, bool], swapped: bool
) -> None:
    module = build()
    next(module.parameters()).requires_grad_(False)
    before = seen(module)
    with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
        module.load_state_dict(other(module, **{key: torch.zeros(4)}), **options)
    assert seen(module) == before


def test_the_error_is_that_of_pytorch() -> None:
    state = {**other(SepTr(**SIZES), **{"fc.bias": torch.zeros(4)}), "more": torch.zeros(1)}
    del state["cls_token"]
    messages = []
    for kind in (SepTr, reference.SepTr):
        with pytest.raises(RuntimeError) as raised:
            kind(**SIZES).load_state_dict(state)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_fits_is_loaded(options: dict[str, bool], swapped: bool) -> None:
    ours, plain = SepTr(**SIZES), reference.SepTr(**SIZES)
    state = other(ours)
    if not options.get("strict", True):
        del state["fc.bias"]
        state["more"] = torch.zeros(1)
    results = [module.load_state_dict(dict(state), **options) for module in (ours, plain)]
    assert results[0] == results[1]
    for name, x in ours.named_parameters():
        if name in state:
            assert torch.equal(x, state[name].to(x.dtype))
            assert x.dtype == plain.get_parameter(name).dtype
            assert (x.data_ptr() == state[name].data_ptr()) == options.get("assign", False)


def test_hooks_run_once_and_may_change_the_state() -> None:
    model, calls = SepTr(**SIZES), []

    def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        calls.append(prefix)
        for key in [key for key in state if key.startswith("module.")]:
            state[key.removeprefix("module.")] = state.pop(key)

    model.register_load_state_dict_pre_hook(rename)
    model.register_load_state_dict_post_hook(lambda module, keys: calls.append(module.fc.bias[0].item()))
    state = other(model)
    model.load_state_dict({f"module.{key}": x for key, x in state.items()})
    assert calls == ["", model.fc.bias[0].item()]
    assert torch.equal(model.cls_token.double(), state["cls_token"].float().double())


def test_an_error_in_a_hook_changes_nothing() -> None:
    model = SepTr(**SIZES)

    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    model.register_load_state_dict_post_hook(refuse)
    before = seen(model)
    with pytest.raises(KeyboardInterrupt):
        model.load_state_dict(other(model))
    assert seen(model) == before


class Older(SepTr):
    """A subclass with a buffer and a way of its own to load."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.register_buffer("seen", torch.zeros(1))
        self.fc.bias = self.transformer[0].transformer_w.layers[0][1].fn.net[3].bias
        self.absent = nn.Parameter(torch.zeros(1))
        self.absent = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({key: x for key, x in state_dict.items() if key != "old"}, strict, assign)


@pytest.mark.parametrize("assign", [False, True])
def test_subclasses_with_buffers_and_shared_parameters(assign: bool) -> None:
    model = Older(**{**SIZES, "num_classes": 8})
    state = {**{key: x + 1 for key, x in model.state_dict().items()}, "old": torch.zeros(1)}
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="cls_token"):
        model.load_state_dict({**state, "cls_token": torch.zeros(2)}, assign=assign)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert model.fc.bias is model.transformer[0].transformer_w.layers[0][1].fn.net[3].bias
    model.load_state_dict(state, assign=assign)
    assert torch.equal(model.seen, torch.ones(1))
