"""Attention of the class token alone on the kernels of `class_attention_kernels`: launchers, and the operator."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import launch
from .class_attention_kernels import class_attention_bwd_kernel, class_attention_fwd_kernel, class_key_bwd_kernel
from .operators import along, check_grid, check_tensors, check_valid, derivative, refuse_second_derivative


def attend(
    grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor, eps: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What each head of the class token attends to in every sequence.

    Tensors may be in any strides.

    Args:
        grid: `(batch, rows, length, dim)`, float32, float16 or bfloat16.
        pos: `(length, dim)`, added to the tokens.
        query: `(batch, heads, dim)`, the scale inside; its dtype is that of the products.
        cls_hat: `(batch, dim)`, the class token normalized.
        eps: added to the variance of a token.
        valid: `(batch,)`, int64, contiguous: how many tokens of a sample's sequences are keys; None for all.

    Returns:
        The attended tokens `(batch, rows, heads, dim)` in the dtype of `query`, and of the
        scores the highest and the sum of their exponentials less the highest, float32 `(batch, rows, heads, 2)`.

    Raises:
        LookupError: where no configuration serves `dim` features and so many heads.
    """
    batch, rows, length, width = grid.shape
    heads = query.shape[1]
    attended = query.new_empty(batch, rows, heads, width)
    statistics = query.new_empty(batch, rows, heads, 2, dtype=torch.float32)
    config, blocks = _configuration("class_attention_fwd", grid, query)
    arguments = {
        "grid_ptr": grid,
        "pos_ptr": pos,
        "query_ptr": query,
        "cls_ptr": cls_hat,
        "valid_ptr": valid,
        "attended_ptr": attended,
        "statistics_ptr": statistics,
        "grid_strides": grid.stride(),
        "pos_strides": pos.stride(),
        "query_strides": query.stride(),
        "cls_strides": cls_hat.stride(),
        "rows": rows,
        "length": length,
        "heads": heads,
        "eps": eps,
        "WIDTH": width,
        **blocks,
    }
    tile_values = _tiled_length(length, config) * blocks["BLOCK_H"] * blocks["BLOCK_D"]
    launch.launch(
        "class_attention_fwd",
        class_attention_fwd_kernel,
        batch * rows,
        config,
        arguments,
        device=grid.device,
        flops=4 * batch * rows * heads * length * width,
        executed_flops=4 * batch * rows * tile_values,
    )
    return attended, statistics


def attend_backward(
    grad_attended: Tensor,
    grid: Tensor,
    pos: Tensor,
    query: Tensor,
    cls_hat: Tensor,
    attended: Tensor,
    statistics: Tensor,
    eps: float,
    grad_grid: Tensor,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attend`; tensors may be in any strides.

    Args:
        grad_attended: `(batch, rows, heads, dim)`.
        grid: `(batch, rows, length, dim)`.
        pos: `(length, dim)`.
        query: `(batch, heads, dim)`.
        cls_hat: `(batch, dim)`.
        attended: `(batch, rows, heads, dim)`, what `attend` gave.
        statistics: `(batch, rows, heads, 2)`, likewise.
        eps: added to the variance of a token.
        grad_grid: `(batch, rows, length, dim)`, written.
        valid: as for `attend`.

    Returns:
        The gradients of `pos`, `query` and `cls_hat`, float32.

    Raises:
        LookupError: where no configuration serves `dim` features and so many heads.
    """
    batch, rows, length, width = grid.shape
    heads = query.shape[1]
    config, blocks = _configuration("class_attention_bwd", grid, query)
    slices = launch.ceil_div(rows, config.tiles["ROWS"])
    key_blocks = launch.ceil_div(length, config.tiles["BLOCK_K"])
    delta = statistics.new_empty(batch, rows, heads)
    pos_parts = statistics.new_empty(batch, slices, length, width)
    query_parts = statistics.new_empty(batch, slices, key_blocks + 1, heads, width)
    cls_parts = statistics.new_empty(batch, slices, width)
    shared = {
        "grad_attended_ptr": grad_attended,
        "query_ptr": query,
        "statistics_ptr": statistics,
        "delta_ptr": delta,
        "grad_attended_strides": grad_attended.stride(),
        "query_strides": query.stride(),
        "statistics_strides": statistics.stride(),
        "rows": rows,
        "heads": heads,
        "slices": slices,
        "WIDTH": width,
        **blocks,
    }
    class_key = {
        "cls_ptr": cls_hat,
        "attended_ptr": attended,
        "query_part_ptr": query_parts[:, :, key_blocks],
        "cls_part_ptr": cls_parts,
        "cls_strides": cls_hat.stride(),
        "attended_strides": attended.stride(),
        "parts": key_blocks + 1,
        "ROWS": config.tiles["ROWS"],
    }
    key_config, _ = _configuration("class_key_bwd", grid, query)
    arguments = {**shared, **class_key}
    launch.launch("class_key_bwd", class_key_bwd_kernel, batch * slices, key_config, arguments, device=grid.device)
    tokens = {
        "grid_ptr": grid,
        "pos_ptr": pos,
        "valid_ptr": valid,
        "grad_grid_ptr": grad_grid,
        "pos_part_ptr": pos_parts,
        "query_part_ptr": query_parts,
        "grid_strides": grid.stride(),
        "pos_strides": pos.stride(),
        "grad_grid_strides": grad_grid.stride(),
        "length": length,
        "blocks": key_blocks,
        "eps": eps,
    }
    tile_values = _tiled_length(length, config) * blocks["BLOCK_H"] * blocks["BLOCK_D"]
    launch.launch(
        "class_attention_bwd",
        class_attention_bwd_kernel,
        batch * slices * key_blocks,
        config,
        {**shared, **tokens},
        device=grid.device,
        flops=10 * batch * rows * heads * length * width,
        executed_flops=10 * batch * rows * tile_values,
    )
    return pos_parts.sum((0, 1)), query_parts.sum((1, 2)), cls_parts.sum(1)


def _configuration(name: str, grid: Tensor, query: Tensor) -> tuple[launch.Config, dict[str, int]]:
    """The configuration for these tensors, and the tiles that hold all heads and features.

    It is looked up by the features of a tile of 16 heads; more heads count as so many more features.
    """
    blocks = {"BLOCK_H": launch.feature_block(query.shape[1]), "BLOCK_D": launch.feature_block(grid.shape[3])}
    dtype = max(grid.dtype, query.dtype, key=lambda dtype: dtype.itemsize)
    features = blocks["BLOCK_H"] // 16 * blocks["BLOCK_D"]
    return launch.choose(name, grid.device, dtype, features), blocks


def _tiled_length(length: int, config: launch.Config) -> int:
    block = config.tiles["BLOCK_K"]
    return launch.ceil_div(length, block) * block


@torch.library.custom_op("septr_fast::class_attention", mutates_args=())
def class_attention(
    grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor, eps: float, axis: str, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What each head of the class token attends to in every sequence along `axis`.

    Differentiable once in all tensors, which may be in any strides; see `attend` for their dtypes.

    Args:
        grid: `(batch, height, width, dim)`.
        pos: `(1 + length, dim)`; the class token's position, in front, is not read.
        query: `(batch, heads, dim)`, the scale inside.
        cls_hat: `(batch, dim)`, the class token normalized.
        eps: added to the variance of a token.
        axis: "height" or "width", the axis that a sequence runs along.
        valid: `(batch,)`, int64, how many tokens of a sample's sequences are keys, those in front; None for all.

    Returns:
        The attended tokens `(batch, rows, heads, dim)` in the dtype of `query`, and of the
        scores the highest and the sum of their exponentials less the highest, float32 `(batch, rows, heads, 2)`,
        which have no gradient.

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        TypeError: where a tensor is elsewhere than `grid`, or not dense, or `valid` is not int64.
        LookupError: where no configuration serves `dim` features and so many heads.
    """
    _check(grid, pos, query, cls_hat, axis, valid)
    return attend(along(grid, axis), pos[1:], query, cls_hat, eps, None if valid is None else valid.contiguous())


def _check(grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor, axis: str, valid: Tensor | None) -> None:
    """Raise an error that names the tensor that does not fit the grid."""
    check_grid("grid", grid)
    check_valid(valid)
    batch, _, length, dim = along(grid, axis).shape
    heads = query.shape[1] if query.dim() == 3 else 0
    expected = {
        "grid": (grid, tuple(grid.shape)),
        "pos": (pos, (1 + length, dim)),
        "query": (query, (batch, heads, dim)),
        "cls_hat": (cls_hat, (batch, dim)),
        "valid": (valid, (batch,)),
    }
    check_tensors(grid.device, expected)


@class_attention.register_fake
def _(
    grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor, eps: float, axis: str, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _check(grid, pos, query, cls_hat, axis, valid)
    batch, rows, _, width = along(grid, axis).shape
    shape = (batch, rows, query.shape[1])
    return query.new_empty(*shape, width), query.new_empty(*shape, 2, dtype=torch.float32)


@torch.library.custom_op("septr_fast::class_attention_backward", mutates_args=())
def class_attention_backward(
    grad_attended: Tensor,
    grid: Tensor,
    pos: Tensor,
    query: Tensor,
    cls_hat: Tensor,
    attended: Tensor,
    statistics: Tensor,
    eps: float,
    axis: str,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `class_attention` for `grid`, `pos`, `query` and `cls_hat`, each in its dtype."""
    grad_grid = torch.empty_like(grid, memory_format=torch.contiguous_format)
    gradients = attend_backward(
        grad_attended,
        along(grid, axis),
        pos[1:],
        query,
        cls_hat,
        attended,
        statistics,
        eps,
        along(grad_grid, axis),
        None if valid is None else valid.contiguous(),
    )
    grad_pos, grad_query, grad_cls = gradients
    grad_pos = F.pad(grad_pos, (0, 0, 1, 0))
    return grad_grid, grad_pos.to(pos.dtype), grad_query.to(query.dtype), grad_cls.to(cls_hat.dtype)


@class_attention_backward.register_fake
def _(
    grad_attended: Tensor, grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (grid, pos, query, cls_hat))
    grad_grid, grad_pos, grad_query, grad_cls = gradients
    return grad_grid, grad_pos, grad_query, grad_cls


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, ctx.axis, valid = inputs
    attended, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(*tensors, attended, statistics, valid)


def _differentiate(ctx: Any, grad_attended: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, valid = ctx.saved_tensors
    return *class_attention_backward(grad_attended, *tensors, ctx.eps, ctx.axis, valid), None, None, None


class_attention.register_autograd(derivative(_differentiate), setup_context=_save)
refuse_second_derivative(class_attention_backward, "class_attention")


@register_flop_formula(torch.ops.septr_fast.class_attention)
def class_attention_flops(grid: Any, pos: Any, query: Any, *_: Any, **__: Any) -> int:
    """Two products of every head with all grid tokens; from shapes."""
    return 4 * math.prod(grid) * query[1]


@register_flop_formula(torch.ops.septr_fast.class_attention_backward)
def class_attention_backward_flops(grad_attended: Any, grid: Any, *_: Any, **__: Any) -> int:
    """Five products: the scores, the gradient of the attention, that of the queries, and twice that of the tokens."""
    return 10 * math.prod(grid) * grad_attended[2]
