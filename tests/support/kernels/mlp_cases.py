"""The MLP's kernels: operands, results between guards, and plain PyTorch beside them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from support.kernels.poison import guarded, poisoned_empty
from support.kernels.token_grids import arranged, strides_of
from support.tolerance import assert_as_good
from torch import Tensor

pytest.importorskip("triton")
from septr_fast.kernels import launch
from septr_fast.kernels.mlp import mlp
from septr_fast.kernels.mlp_backward import mlp_backward

EPS = 1e-2


TILES = launch.Config({"BLOCK_M": 16, "BLOCK_H": 32}, stages=2)


SMALL = {"mlp_fwd": TILES, "mlp_fwd_wide": TILES, "mlp_bwd": TILES}


RELOADING = {"mlp_bwd": launch.Config({**TILES.tiles, "RELOAD": 1}, stages=2)}


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


PARAMETERS = ("hidden_weight", "hidden_bias", "out_weight", "out_bias")


@dataclass
class Case:
    """Operands of a forward and a backward pass."""

    x: Tensor
    pos: Tensor | None
    branch: Tensor | None
    grad_z: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def tensors(self) -> list[Tensor]:
        values = [getattr(self, field.name) for field in fields(self)]
        return [x for x in values if x is not None]

    def weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in PARAMETERS]


def draw(
    shape: tuple[int, int, int, int],
    hidden: int,
    device: torch.device,
    residual: torch.dtype = torch.float32,
    compute: torch.dtype = torch.float32,
    scale: float = 1.0,
    layout: str = "contiguous",
) -> Case:
    def normal(*sizes: int, dtype: torch.dtype = compute, factor: float = 1.0) -> Tensor:
        return (factor * torch.randn(sizes, device=device)).to(dtype)

    length, dim = shape[2:]
    return Case(
        x=arranged(normal(*shape, dtype=residual, factor=scale), layout),
        pos=normal(dim, length, dtype=residual, factor=scale).t(),
        branch=arranged(normal(*shape, factor=scale), layout),
        grad_z=arranged(normal(*shape, dtype=residual), layout),
        hidden_weight=normal(hidden, dim, factor=dim**-0.5 * max(1.0, scale)),
        hidden_bias=normal(hidden),
        out_weight=normal(dim, hidden, factor=hidden**-0.5),
        out_bias=normal(dim),
    )


def kernel(case: Case, layout: str = "contiguous", eps: float = EPS) -> dict[str, Tensor]:
    shape = tuple(case.x.shape)
    y, z, grad_y = (guarded(shape, case.x.dtype, strides_of(layout, shape), case.x.device) for _ in range(3))
    before = [x.clone() for x in case.tensors()]
    with poisoned_empty():
        mlp(case.x, case.pos, case.branch, *case.weights(), eps, y.tensor, z.tensor)
        kept = y.tensor.clone()
        gradients = mlp_backward(y.tensor, case.grad_z, *case.weights()[:3], eps, grad_y.tensor)
    for written in (y, z, grad_y):
        written.check()
    assert torch.equal(y.tensor, kept)
    assert all(torch.equal(x, y) for x, y in zip(before, case.tensors(), strict=True))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    rounded = [gradient.to(case.hidden_weight.dtype) for gradient in gradients]
    return {"y": y.tensor, "z": z.tensor, "grad_y": grad_y.tensor, **dict(zip(PARAMETERS, rounded, strict=True))}


def expected(case: Case, exact: bool, eps: float = EPS) -> dict[str, Tensor]:
    def operand(x: Tensor) -> Tensor:
        return x.detach().double() if exact else x.detach()

    y = operand(case.x)
    for summand in (case.pos, case.branch):
        y = y if summand is None else y + operand(summand)
    y.requires_grad_()
    weights = [operand(weight).requires_grad_() for weight in case.weights()]
    hidden_weight, hidden_bias, out_weight, out_bias = weights
    hat = F.layer_norm(y, y.shape[-1:], eps=eps).to(hidden_weight.dtype)
    z = y + F.linear(F.gelu(F.linear(hat, hidden_weight, hidden_bias)), out_weight, out_bias)
    gradients = torch.autograd.grad(z, [y, *weights], operand(case.grad_z))
    return {"y": y.detach(), "z": z.detach(), **dict(zip(["grad_y", *PARAMETERS], gradients, strict=True))}


def check(case: Case, layout: str = "contiguous", eps: float = EPS) -> None:
    assert_as_good(kernel(case, layout, eps), expected(case, False, eps), expected(case, True, eps))
