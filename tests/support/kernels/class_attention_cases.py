"""The class token's attention: operands, the operator and plain PyTorch beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.tolerance import assert_as_good
from torch import Tensor

pytest.importorskip("triton")
from septr_fast.kernels import launch
from septr_fast.kernels.class_attention import class_attention

EPS = 1e-5


NAMES = ("grid", "pos", "query", "cls_hat")


SMALL = {
    "class_attention_fwd": launch.Config({"BLOCK_K": 16}),
    "class_attention_bwd": launch.Config({"BLOCK_K": 16, "ROWS": 2}),
}


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def plain(grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor, axis: str) -> Tensor:
    rows = grid.transpose(1, 2) if axis == "height" else grid
    hat = F.layer_norm(rows + pos[1:], rows.shape[-1:], eps=EPS).to(query.dtype)
    front = cls_hat[:, None, None].expand(-1, rows.shape[1], 1, -1)
    key = torch.cat([front, hat], dim=2)
    probability = torch.einsum("bhd,brkd->brhk", query, key).softmax(-1)
    return torch.einsum("brhk,brkd->brhd", probability, key)


def draw(
    shape: tuple[int, int, int, int],
    axis: str,
    heads: int,
    device: torch.device,
    dtype: torch.dtype,
    scale: float = 1.0,
    residual: torch.dtype | None = None,
) -> Inputs:
    batch, height, width, dim = shape
    length = height if axis == "height" else width
    grid = scale * torch.randn(shape)
    pos = scale * torch.randn(1 + length, dim)
    query = scale * torch.randn(batch, heads, dim) * dim**-0.5
    cls_hat = F.layer_norm(torch.randn(batch, dim), (dim,))
    stream = residual or dtype
    return grid.to(device, stream), pos.to(device, stream), query.to(device, dtype), cls_hat.to(device, dtype)


def step(attend: Callable[..., Tensor], inputs: Inputs, grad: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    attended = attend(*leaves)
    gradients = torch.autograd.grad(attended, leaves, grad.to(attended.dtype))
    return {"attended": attended.detach(), **dict(zip(NAMES, gradients, strict=True))}


def check(inputs: Inputs, axis: str, grad: Tensor | None = None) -> None:
    def kernel(*tensors: Tensor) -> Tensor:
        return class_attention(*tensors, EPS, axis)[0]

    def expected(*tensors: Tensor) -> Tensor:
        return plain(*tensors, axis)

    if grad is None:
        grad = torch.randn(expected(*inputs).shape).to(inputs[0].device)
    oracle = step(expected, tuple(x.double() for x in inputs), grad)
    assert_as_good(step(kernel, inputs, grad), step(expected, inputs, grad), oracle)
