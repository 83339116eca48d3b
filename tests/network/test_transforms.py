"""Derivatives that people take of a whole model: Jacobians, Hessians, several gradients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import pair, relative_error, spectrograms
from support.versions import needs_kernels
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from septr_fast import SepTr

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG: dict[str, Any] = {
    "input_size": (5, 4),
    "num_classes": 3,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 8,
    "dim": 8,
}
DIRECTIONS = torch.eye(6).view(6, 2, 3)


def total(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).sin().sum()


def of_weights(model: nn.Module, x: Tensor, directions: Tensor = DIRECTIONS, **options: Any) -> Tensor:
    """Of logits, with respect to all parameters and the input, side by side."""
    x = x.clone().requires_grad_()
    inputs = [x, *model.parameters()]
    found = torch.autograd.grad(model(x), inputs, directions.to(x), is_grads_batched=True, **options)
    return torch.cat([one.flatten(1) for one in found], dim=1)


DERIVATIVES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "jacobian": lambda model, x: jacobian(model, x, vectorize=True),
    "jacobian, forward": lambda model, x: jacobian(model, x, vectorize=True, strategy="forward-mode"),
    "hessian": lambda model, x: hessian(total(model), x[:1], vectorize=True),
    "several gradients": of_weights,
    "several gradients, differentiable": lambda model, x: of_weights(model, x, create_graph=True),
    "jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "jacfwd": lambda model, x: torch.func.jacfwd(model)(x),
    "vjp": lambda model, x: torch.func.vjp(model, x)[1](torch.ones(2, 3).to(x))[0],
    "hessian product": lambda model, x: torch.func.jvp(torch.func.grad(total(model)), (x,), (x.cos(),))[1],
}


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("formulation", [None, "direct", "merged"], ids=["planned", "direct", "merged"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_derivatives(derivative: str, formulation: str | None, recompute: bool, dtype: torch.dtype) -> None:
    """In float32 a training step on a CPU has a backward pass of its own, which is no autograd's."""
    expected, model = pair(CONFIG, dtype, formulation=formulation)
    model.set_grad_checkpointing(recompute)
    x = spectrograms(CONFIG, 2, dtype)
    take = DERIVATIVES[derivative]
    assert relative_error(take(model, x), take(expected, x)) < (1e-10 if dtype == torch.float64 else 1e-5)


@needs_kernels
@pytest.mark.parametrize("formulation", [None, "direct", "merged"], ids=["planned", "direct", "merged"])
def test_several_gradients_of_kernels(formulation: str | None, device: torch.device) -> None:
    pytest.importorskip("triton")
    wide = {**CONFIG, "input_size": (3, 2), "depth": 1, "dim": 16, "dim_head": 16, "mlp_dim": 16}
    expected, model = (one.to(device) for one in pair(wide, torch.float32, formulation=formulation, backend="triton"))
    x = spectrograms(wide, 2, torch.float32).to(device)
    two = DIRECTIONS[[1, 4]]
    assert relative_error(of_weights(model, x, two), of_weights(expected, x, two)) < 1e-4


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_compiled_for_any_size(gradients: bool) -> None:
    """There a number may become a symbol, a probability of dropout too."""
    torch._dynamo.reset()  # Compilations are counted for `forward` in all of a process.
    config = {**CONFIG, "depth": 1, "dropout_tr": 0.1}
    expected, model = pair(config, formulation=[None, "direct"])
    x = spectrograms(config, 2)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(gradients):
        undropped = expected.eval()(x)
        assert relative_error(compiled(x), undropped) > 1e-3
        set_dropout(model, 0.0)
        found = compiled(x)
        assert relative_error(found, undropped) < 1e-12
        if gradients:
            found.sum().backward()


def set_dropout(model: SepTr, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
