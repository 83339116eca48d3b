"""The pass of `axis_pass` as a registered operator, differentiable once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .axis_pass import Settings, Weights, backward, forward
from .operators import along, check_grid, check_tensors, check_valid, derivative, or_zeros, refuse_second_derivative


@torch.library.custom_op("septr_fast::axis_pass", mutates_args=())
def axis_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    mlp_weight: Tensor,
    mlp_bias: Tensor,
    heads: int,
    merged: bool,
    attention_eps: float,
    mlp_eps: float,
    axis: str,
    keep: bool,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add positions and run one pre-norm transformer over every sequence along `axis`.

    Args:
        grid: `(batch, height, width, dim)`, the residual stream.
        cls_token: `(batch, dim)`.
        pos: `(1 + length, dim)`, the class token's position first.
        query_weight: see `axis_pass.Weights` for this and the other weights.
        query_bias: of the projection.
        out_weight: of the output's projection, or None.
        out_bias: likewise.
        hidden_weight: of the MLP's first layer.
        hidden_bias: likewise.
        mlp_weight: of the MLP's second layer.
        mlp_bias: likewise.
        heads: number of heads.
        merged: whether keys and values are the normalized tokens.
        attention_eps: added to the variance of a token before the attention.
        mlp_eps: likewise before the MLP.
        axis: "height" or "width".
        keep: whether a backward pass may follow.
        valid: `(batch,)`, int64, how many grid tokens of a sample's sequences are keys, those in front; None for
            all. What stands behind them has to be finite.

    Returns:
        The grid `(batch, height, width, dim)`, the class token of every sequence `(batch, rows, dim)`, and, for
        the backward pass alone, both as they were between attention and MLP (without `keep`, nothing).

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        TypeError: where a tensor is elsewhere than `grid`, or not dense, or `valid` is not int64.
    """
    weights = Weights(query_weight, query_bias, out_weight, out_bias, hidden_weight, hidden_bias, mlp_weight, mlp_bias)
    settings = Settings(heads, merged, attention_eps, mlp_eps, axis)
    _check(grid, cls_token, pos, weights, settings, valid)
    out, cls_out, middle, cls_middle = forward(grid, cls_token, pos, weights, settings, keep, _contiguous(valid))
    nothing = (grid.new_empty(0), grid.new_empty(0))
    return out, cls_out, *(nothing if middle is None or cls_middle is None else (middle, cls_middle))


@torch.library.custom_op("septr_fast::axis_pass_backward", mutates_args=())
def axis_pass_backward(
    grad_out: Tensor,
    grad_cls_out: Tensor,
    grid: Tensor,
    cls_token: Tensor,
    pos: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    mlp_weight: Tensor,
    mlp_bias: Tensor,
    middle: Tensor,
    cls_middle: Tensor,
    heads: int,
    merged: bool,
    attention_eps: float,
    mlp_eps: float,
    axis: str,
    valid: Tensor | None = None,
) -> list[Tensor]:
    """Contiguous gradients of `axis_pass` in its tensors, in their order, without those that are None."""
    weights = Weights(query_weight, query_bias, out_weight, out_bias, hidden_weight, hidden_bias, mlp_weight, mlp_bias)
    settings = Settings(heads, merged, attention_eps, mlp_eps, axis)
    kept = (middle, cls_middle, _contiguous(valid))
    *gradients, sums = backward(grad_out, grad_cls_out, grid, cls_token, pos, weights, settings, *kept)
    return [gradient.contiguous() for gradient in (*gradients, *(total.to(weights.dtype) for total in sums.values()))]


@axis_pass.register_fake
def _(grid: Tensor, cls_token: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights, settings, keep = Weights(*arguments[1:9]), Settings(*arguments[9:14]), arguments[14]
    _check(grid, cls_token, arguments[0], weights, settings, arguments[15] if len(arguments) > 15 else None)
    axis = settings.axis
    batch, rows, _, dim = along(grid, axis).shape
    out, cls_out = grid.new_empty(grid.shape), grid.new_empty(batch, rows, dim)
    kept = (torch.empty_like(out), torch.empty_like(cls_out)) if keep else (grid.new_empty(0), grid.new_empty(0))
    return out, cls_out, *kept


@axis_pass_backward.register_fake
def _(grad_out: Tensor, grad_cls_out: Tensor, *arguments: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in arguments[:11] if tensor is not None]


def _check(
    grid: Tensor, cls_token: Tensor, pos: Tensor, weights: Weights, settings: Settings, valid: Tensor | None
) -> None:
    """Raise an error that names the tensor that does not fit the grid and the settings."""
    check_grid("grid", grid)
    check_valid(valid)
    batch, _, length, dim = along(grid, settings.axis).shape
    heads, projected, hidden = settings.heads, weights.query_weight.shape[0], weights.hidden_weight.shape[0]
    parts = heads if settings.merged else 3 * heads
    if heads < 1 or projected % parts:
        raise ValueError(f"heads: expected a divisor of {projected} rows of query_weight, got {heads}")
    features = dim if settings.merged else projected // parts
    if weights.out_weight is None and (heads, features) != (1, dim):
        raise ValueError(f"out_weight: expected ({dim}, {heads * features}), got None")
    if (weights.out_weight is None) != (weights.out_bias is None):
        raise ValueError("out_bias: expected None where out_weight is None, and only there")
    expected = {
        "grid": (grid, tuple(grid.shape)),
        "cls_token": (cls_token, (batch, dim)),
        "pos": (pos, (1 + length, dim)),
        "query_weight": (weights.query_weight, (parts * features, dim)),
        "query_bias": (weights.query_bias, (parts * features,)),
        "out_weight": (weights.out_weight, (dim, heads * features)),
        "out_bias": (weights.out_bias, (dim,)),
        "hidden_weight": (weights.hidden_weight, (hidden, dim)),
        "hidden_bias": (weights.hidden_bias, (hidden,)),
        "mlp_weight": (weights.mlp_weight, (dim, hidden)),
        "mlp_bias": (weights.mlp_bias, (dim,)),
        "valid": (valid, (batch,)),
    }
    check_tensors(grid.device, expected)


def _contiguous(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.contiguous()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.heads, ctx.merged, ctx.attention_eps, ctx.mlp_eps, ctx.axis, keep, valid = inputs
    if not keep:
        raise RuntimeError("axis_pass: keep=True is needed where gradients are asked for")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:], valid)


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_cls_out: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    *saved, valid = ctx.saved_tensors
    settings = (ctx.heads, ctx.merged, ctx.attention_eps, ctx.mlp_eps, ctx.axis, valid)
    middle, cls_middle = saved[11:]
    grads = or_zeros(grad_out, middle, middle.shape), or_zeros(grad_cls_out, cls_middle, cls_middle.shape)
    gradients = iter(axis_pass_backward(*grads, *saved, *settings))
    return *(None if tensor is None else next(gradients) for tensor in saved[:11]), *(None,) * 7


axis_pass.register_autograd(derivative(_differentiate), setup_context=_keep)
refuse_second_derivative(axis_pass_backward, "axis_pass")


@register_flop_formula(torch.ops.septr_fast.axis_pass)
def axis_pass_flops(grid: Any, cls_token: Any, pos: Any, *arguments: Any, **_: Any) -> int:
    """Projections, two products of attention, and the MLP; from shapes."""
    return _flops(grid, pos, arguments[:8], arguments[12], projections=1, attention=2, mlp=2)


@register_flop_formula(torch.ops.septr_fast.axis_pass_backward)
def axis_pass_backward_flops(
    grad_out: Any, grad_cls_out: Any, grid: Any, cls_token: Any, pos: Any, *arguments: Any, **_: Any
) -> int:
    """The gradients' products, and those of the forward pass that are done again for them."""
    return _flops(grid, pos, arguments[:8], arguments[14], projections=3, attention=9, mlp=5)


def _flops(
    grid: Any, pos: Any, weights: tuple[Any, ...], axis: str, *, projections: int, attention: int, mlp: int
) -> int:
    """The class token's projection is counted once a sample, as it is done.

    The output is projected `projections` times too in the forward pass, once less in the backward pass, which
    does not repeat it.
    """
    query_weight, _, out_weight, _, hidden_weight = weights[:5]
    batch, height, width, dim = grid
    rows, tokens = batch * (width if axis == "height" else height), pos[0]
    features = query_weight[0] if out_weight is None else out_weight[1]
    features = dim if out_weight is None else features
    out = 0 if out_weight is None else min(projections, 2) * dim * features
    projected = (rows * (tokens - 1) + batch) * projections * dim * query_weight[0]
    return 2 * (projected + rows * tokens * (out + attention * tokens * features + mlp * dim * hidden_weight[0]))
