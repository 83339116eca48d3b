"""The passes of the file `passes` as operators that a compiler leaves whole, for compiled inference on a CPU.

A compiler that sees into a pass fuses more, but runs each step over the whole grid: out of the caches, and slower than
the chunks of those passes (1.12 times for the default model on two cores of an AMD EPYC). So a pass is one
operator to it. Exporters see into it, and so does a compiler where gradients are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from septr_fast.algebra.folded import Direct, Folded, LowRank, Merged, Mlp
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.observers import exports, transforms
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import passes as torch_passes


def serve(device: torch.device, settings: Settings) -> bool:
    """Whether a pass over tensors on `device` is compiled as one of these operators."""
    if not torch.compiler.is_compiling() or exports():
        return False
    return device.type == "cpu" and not torch.is_grad_enabled() and not transforms() and not settings.drops


def axis_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.axis_pass`."""
    in_place, merged = settings.in_place, isinstance(weights.attention, Merged)
    grid = grid.contiguous() if in_place else grid.clone(memory_format=torch.contiguous_format)
    tokens = (grid, cls_token, pos_embedding)
    return grid, _axis_pass(*tokens, *_weights(weights), merged, settings.axis, *_padded(settings.lengths))


def low_rank_pass(pixels: Tensor, weights: Folded, settings: Settings) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.low_rank_pass`."""
    dtype = pixels.dtype if settings.dtype is None else settings.dtype
    return _low_rank_pass(pixels, *_weights(weights), settings.axis, dtype, *_padded(settings.lengths))


def class_only_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> Tensor:
    """See `septr_fast.passes.dispatch.class_only_pass`."""
    tokens = (grid, cls_token, pos_embedding)
    return _class_only_pass(*tokens, *_weights(weights), settings.axis, *_padded(settings.lengths))


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
    weights = Folded(kind(heads, eps[0], *attention), Mlp(eps[1], *mlp))  # type: ignore[arg-type]
    settings = Settings(axis, lengths=_lengths(valid, padded_axis), in_place=True)
    out, cls_token = torch_passes.axis_pass(grid, cls_token, pos_embedding, weights, settings)
    if out is not grid:
        grid.copy_(out)
    return cls_token


@torch.library.custom_op("septr_fast::torch_low_rank_pass", mutates_args=())
def _low_rank_pass(
    pixels: Tensor,
    attention: Sequence[Tensor | None],
    mlp: Sequence[Tensor | None],
    heads: int,
    eps: Sequence[float],
    axis: str,
    dtype: torch.dtype,
    valid: Tensor | None,
    padded_axis: str,
) -> tuple[Tensor, Tensor]:
    weights = Folded(LowRank(heads, *attention), Mlp(eps[0], *mlp))  # type: ignore[arg-type]
    settings = Settings(axis, dtype=dtype, lengths=_lengths(valid, padded_axis))
    return torch_passes.low_rank_pass(pixels, weights, settings)


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
    weights = Folded(Direct(heads, eps[0], *attention), Mlp(eps[1], *mlp))  # type: ignore[arg-type]
    settings = Settings(axis, lengths=_lengths(valid, padded_axis))
    return torch_passes.class_only_pass(grid, cls_token, pos_embedding, weights, settings)


@_axis_pass.register_fake
def _(grid: Tensor, cls_token: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(cls_token, memory_format=torch.contiguous_format)


@_low_rank_pass.register_fake
def _(pixels: Tensor, attention: Any, mlp: Any, heads: int, eps: Any, axis: str, dtype: Any, *_: Any) -> Any:
    dim = mlp[3].shape[0]
    return pixels.new_empty(*pixels.shape[:3], dim, dtype=dtype), pixels.new_empty(pixels.shape[0], dim, dtype=dtype)


@_class_only_pass.register_fake
def _(grid: Tensor, cls_token: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(cls_token, memory_format=torch.contiguous_format)


def _weights(weights: Folded) -> tuple[list[Tensor | None], list[Tensor | None], int, list[float]]:
    """The tensors of attention and MLP in the order of their fields, the heads, and the epsilons that there are."""
    eps = [part.eps for part in weights if not isinstance(part, LowRank)]
    return _tensors(weights.attention), _tensors(weights.mlp), weights.attention.heads, eps


def _tensors(weights: Direct | Merged | LowRank | Mlp) -> list[Tensor | None]:
    """The tensors of `weights` in the order of its fields."""
    return [getattr(weights, field.name) for field in fields(weights) if field.name not in ("heads", "eps")]


def _padded(lengths: Lengths | None) -> tuple[Tensor | None, str]:
    return (None, "") if lengths is None else (lengths.valid, lengths.axis)


def _lengths(valid: Tensor | None, axis: str) -> Lengths | None:
    return None if valid is None else Lengths(axis, valid)
