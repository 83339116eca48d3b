"""The passes of `torch_backend` as operators that a compiler leaves whole, for compiled inference on a CPU.

A compiler that sees into a pass fuses more, but runs each step over the whole grid: out of the caches, and slower than
the chunks of `torch_backend` (1.12 times for the default model on two cores of an AMD EPYC). So a pass is one
operator to it. Exporters see into it, and so does a compiler where gradients are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from septr_fast.algebra.folded import NO_DROPOUT, Direct, Dropout, LowRank, Merged, Mlp
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.observers import exports, transforms
from septr_fast.passes.torch import passes as torch_passes


def serve(device: torch.device, dropout: Dropout) -> bool:
    """Whether a pass over tensors on `device` is compiled as one of these operators."""
    if not torch.compiler.is_compiling() or exports():
        return False
    return device.type == "cpu" and not torch.is_grad_enabled() and not transforms() and dropout == NO_DROPOUT


def axis_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct | Merged,
    mlp: Mlp,
    *,
    axis: str,
    out: Tensor | None = None,
    lengths: Lengths | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.axis_pass`; `out` may be `grid` alone."""
    weights = (_tensors(attention), _tensors(mlp), attention.heads, [attention.eps, mlp.eps])
    grid = grid.contiguous() if out is grid else grid.clone(memory_format=torch.contiguous_format)
    merged = isinstance(attention, Merged)
    return grid, _axis_pass(grid, cls_token, pos_embedding, *weights, merged, axis, *_padded(lengths))


def low_rank_pass(
    pixels: Tensor,
    attention: LowRank,
    mlp: Mlp,
    *,
    axis: str,
    dtype: torch.dtype | None = None,
    lengths: Lengths | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.low_rank_pass`."""
    weights = (_tensors(attention), _tensors(mlp), attention.heads, mlp.eps)
    return _low_rank_pass(pixels, *weights, axis, pixels.dtype if dtype is None else dtype, *_padded(lengths))


def class_only_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct,
    mlp: Mlp,
    *,
    axis: str,
    lengths: Lengths | None = None,
    **_: Any,
) -> Tensor:
    """See `septr_fast.passes.dispatch.class_only_pass`."""
    weights = (_tensors(attention), _tensors(mlp), attention.heads, [attention.eps, mlp.eps])
    return _class_only_pass(grid, cls_token, pos_embedding, *weights, axis, *_padded(lengths))


@torch.library.custom_op("septr_fast::torch_axis_pass", mutates_args=("grid",))
def _axis_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Sequence[Tensor | None],
    mlp: Sequence[Tensor | None],
    heads: int,
    eps: Sequence[float],
    merged: bool,
    axis: str,
    valid: Tensor | None,
    padded_axis: str,
) -> Tensor:
    """The class token; the grid is changed in place, since fresh memory of its size costs two percent of the time."""
    kind = Merged if merged else Direct
    weights = (kind(heads, eps[0], *attention), Mlp(eps[1], *mlp))  # type: ignore[arg-type]
    lengths = _lengths(valid, padded_axis)
    options: dict[str, Any] = {"axis": axis, "lengths": lengths, "out": grid}
    out, cls_token = torch_passes.axis_pass(grid, cls_token, pos_embedding, *weights, **options)
    if out is not grid:
        grid.copy_(out)
    return cls_token


@torch.library.custom_op("septr_fast::torch_low_rank_pass", mutates_args=())
def _low_rank_pass(
    pixels: Tensor,
    attention: Sequence[Tensor | None],
    mlp: Sequence[Tensor | None],
    heads: int,
    eps: float,
    axis: str,
    dtype: torch.dtype,
    valid: Tensor | None,
    padded_axis: str,
) -> tuple[Tensor, Tensor]:
    weights = (LowRank(heads, *attention), Mlp(eps, *mlp))  # type: ignore[arg-type]
    lengths = _lengths(valid, padded_axis)
    return torch_passes.low_rank_pass(pixels, *weights, axis=axis, dtype=dtype, lengths=lengths)


@torch.library.custom_op("septr_fast::torch_class_only_pass", mutates_args=())
def _class_only_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Sequence[Tensor | None],
    mlp: Sequence[Tensor | None],
    heads: int,
    eps: Sequence[float],
    axis: str,
    valid: Tensor | None,
    padded_axis: str,
) -> Tensor:
    weights = (Direct(heads, eps[0], *attention), Mlp(eps[1], *mlp))  # type: ignore[arg-type]
    lengths = _lengths(valid, padded_axis)
    return torch_passes.class_only_pass(grid, cls_token, pos_embedding, *weights, axis=axis, lengths=lengths)


@_axis_pass.register_fake
def _(grid: Tensor, cls_token: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(cls_token, memory_format=torch.contiguous_format)


@_low_rank_pass.register_fake
def _(pixels: Tensor, attention: Any, mlp: Any, heads: int, eps: float, axis: str, dtype: Any, *_: Any) -> Any:
    dim = mlp[3].shape[0]
    return pixels.new_empty(*pixels.shape[:3], dim, dtype=dtype), pixels.new_empty(pixels.shape[0], dim, dtype=dtype)


@_class_only_pass.register_fake
def _(grid: Tensor, cls_token: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(cls_token, memory_format=torch.contiguous_format)


def _tensors(weights: Direct | Merged | LowRank | Mlp) -> list[Tensor | None]:
    """The tensors of `weights` in the order of its fields."""
    return [getattr(weights, field.name) for field in fields(weights) if field.name not in ("heads", "eps")]


def _padded(lengths: Lengths | None) -> tuple[Tensor | None, str]:
    return (None, "") if lengths is None else (lengths.valid, lengths.axis)


def _lengths(valid: Tensor | None, axis: str) -> Lengths | None:
    return None if valid is None else Lengths(axis, valid)
