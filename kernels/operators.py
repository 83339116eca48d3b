"""What all registered operators share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Expected = Mapping[str, tuple[Tensor | None, tuple[int, ...]]]
"""Tensors by the names of an operator's arguments, each with the shape that it has to have; None where it is absent."""


def refuse_second_derivative(backward: Any, name: str) -> None:
    """Let the derivative of the operator `backward` raise an error that names the operator `name`."""

    def refuse(_ctx: Any, *_gradients: Tensor) -> None:
        raise RuntimeError(
            f'{name} cannot be differentiated twice on Triton kernels; build the model with backend="torch" for that'
        )

    backward.register_autograd(refuse)


def derivative(differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """`differentiate(ctx, *grads)` as PyTorch calls it.

    Called inside of autocast it computes as outside. Of the gradients that `is_grads_batched` stacks into one it gets
    one after the other: where PyTorch takes several at once by its own vmap, an operator that takes lists gets no rule.
    """
    one = _one_at_a_time(differentiate)

    @functools.wraps(differentiate)
    def run(ctx: Any, *grads: Any) -> Any:
        device = next((x.device.type for x in grads if isinstance(x, Tensor)), "meta")
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            return one(ctx, *grads)

    return run


def _one_at_a_time(differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """`differentiate(ctx, *grads)`, called for each of the gradients that `is_grads_batched` stacks into one."""

    @functools.wraps(differentiate)
    def run(ctx: Any, *grads: Any) -> Any:
        stacked = [isinstance(x, Tensor) and torch._C._functorch.is_legacy_batchedtensor(x) for x in grads]
        if not any(stacked):
            return differentiate(ctx, *grads)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        apart = [torch._remove_batch_dim(x, level, 0, 0) if many else x for x, many in zip(grads, stacked, strict=True)]
        count = next(len(x) for x, many in zip(apart, stacked, strict=True) if many)
        found = [
            differentiate(ctx, *(x[i] if many else x for x, many in zip(apart, stacked, strict=True)))
            for i in range(count)
        ]
        return tree_map(lambda *each: _stacked(each, level), *found)

    return run


def _stacked(each: Sequence[Any], level: int) -> Any:
    return torch._add_batch_dim(torch.stack(list(each)), 0, level) if isinstance(each[0], Tensor) else each[0]


def or_zeros(grad: Tensor | None, like: Tensor, shape: Sequence[int]) -> Tensor:
    """A gradient, or zeros where nothing depends on the result.

    An operator that keeps results for its backward pass says `set_materialize_grads(False)`: PyTorch would fill
    zeros of their sizes for every pass, which nobody reads.
    """
    return like.new_zeros(shape) if grad is None else grad


def along(grid: Tensor, axis: str) -> Tensor:
    """View `(batch, height, width, …)` as `(batch, rows, length, …)`, the length along `axis`."""
    if axis not in ("height", "width"):
        raise ValueError(f"axis: expected height or width, got {axis!r}")
    return grid.transpose(1, 2) if axis == "height" else grid


def check_grid(name: str, grid: Tensor) -> None:
    """Raise `ValueError` unless `grid` has four dimensions."""
    if grid.dim() != 4:
        raise ValueError(f"{name}: expected (batch, height, width, features), got {tuple(grid.shape)}")


def check_tensors(device: torch.device, expected: Expected) -> None:
    """Check what a kernel would read beyond its memory otherwise.

    Raises:
        ValueError: for a tensor of another shape than expected, naming it.
        TypeError: for a tensor that is not on `device`, or not dense.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
        if tensor.device != device or tensor.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor on {device}, got {tensor.layout} on {tensor.device}")


def check_valid(valid: Tensor | None) -> None:
    """Raise `TypeError` unless the numbers of valid tokens are int64."""
    if valid is not None and valid.dtype != torch.int64:
        raise TypeError(f"valid: expected torch.int64, got {valid.dtype}")
