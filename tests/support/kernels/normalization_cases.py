"""The normalization's kernels: operands, results between guards, and plain PyTorch beside them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support.kernels.poison import guarded, poisoned_empty
from support.kernels.token_grids import arranged, strides_of
from support.tolerance import assert_as_good
from torch import Tensor

pytest.importorskip("triton")
from septr_fast.kernels import launch
from septr_fast.kernels.normalization import normalize, normalize_backward

EPS = 1e-2


SMALL = {
    "normalize": launch.Config({"BLOCK_M": 16}),
    "normalize_bwd": launch.Config({"BLOCK_L": 16, "SEQUENCES": 2}),
}


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """Operands of a forward and a backward pass."""

    x: Tensor
    pos: Tensor | None
    residual_grad: Tensor | None
    grad_hat: Tensor

    def tensors(self) -> list[Tensor]:
        return [x for x in (self.x, self.pos, self.residual_grad, self.grad_hat) if x is not None]


def draw(
    shape: tuple[int, int, int, int],
    device: torch.device,
    residual: torch.dtype = torch.float32,
    compute: torch.dtype = torch.float32,
    scale: float = 1.0,
    layout: str = "contiguous",
) -> Case:
    def grid(dtype: torch.dtype) -> Tensor:
        return arranged(torch.randn(shape, device=device).to(dtype), layout)

    x = arranged((scale * torch.randn(shape, device=device) + scale).to(residual), layout)
    pos = (scale * torch.randn(shape[3], shape[2], device=device)).to(residual).t()
    return Case(x, pos, grid(residual), grid(compute))


def kernel(case: Case, layout: str = "contiguous", eps: float = EPS) -> dict[str, Tensor]:
    written = guarded(case.x.shape, case.x.dtype, strides_of(layout, tuple(case.x.shape)), case.x.device)
    before = [x.clone() for x in case.tensors()]
    with poisoned_empty():
        hat = normalize(case.x, case.pos, eps, case.grad_hat.dtype)
        grad_pos = normalize_backward(case.grad_hat, case.x, case.pos, case.residual_grad, eps, written.tensor)
    written.check()
    assert hat.is_contiguous()
    assert all(torch.equal(x, y) for x, y in zip(before, case.tensors(), strict=True))
    results = {"hat": hat, "grad_x": written.tensor}
    if grad_pos is None:
        assert case.pos is None
        return results
    assert grad_pos.dtype == torch.float32
    return {**results, "grad_pos": grad_pos.to(case.x.dtype)}


def expected(case: Case, exact: bool, eps: float = EPS) -> dict[str, Tensor]:
    def operand(x: Tensor) -> Tensor:
        return x.detach().double() if exact else x.detach()

    leaves = {"grad_x": operand(case.x).requires_grad_()}
    if case.pos is not None:
        leaves["grad_pos"] = operand(case.pos).requires_grad_()
    y = sum(leaves.values())
    hat = F.layer_norm(y, y.shape[-1:], eps=eps).to(torch.float64 if exact else case.grad_hat.dtype)
    outputs, grads = [hat], [operand(case.grad_hat)]
    if case.residual_grad is not None:
        outputs, grads = [*outputs, y], [*grads, operand(case.residual_grad)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return {"hat": hat.detach(), **dict(zip(leaves, gradients, strict=True))}


def check(case: Case, layout: str = "contiguous", eps: float = EPS) -> None:
    assert_as_good(kernel(case, layout, eps), expected(case, False, eps), expected(case, True, eps))
