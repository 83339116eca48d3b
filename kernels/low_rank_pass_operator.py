"""The pass of `low_rank_pass` as a registered operator, differentiable once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .low_rank import ScoreTables
from .low_rank_pass import Tables, backward, forward
from .operators import along, check_grid, check_tensors, derivative, or_zeros, refuse_second_derivative
from .passes import Layers


@torch.library.custom_op("septr_fast::low_rank_pass", mutates_args=())
def low_rank_pass(
    pixels: Tensor,
    gram: Tensor,
    cross: Tensor,
    square: Tensor,
    pixel_pixel: Tensor,
    position_pixel: Tensor,
    pixel_bias: Tensor,
    pixel_position: Tensor,
    position_position: Tensor,
    position_bias: Tensor,
    position_values: Tensor,
    pixel_values: Tensor,
    out_bias: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    mlp_weight: Tensor,
    mlp_bias: Tensor,
    eps: float,
    axis: str,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the model's first transformer straight from the pixels, projection and positions included.

    Args:
        pixels: `(batch, height, width, channels)`.
        gram: see `low_rank.ScoreTables` for this and the next eight.
        cross: likewise.
        square: likewise.
        pixel_pixel: likewise.
        position_pixel: likewise.
        pixel_bias: likewise.
        pixel_position: likewise.
        position_position: likewise.
        position_bias: likewise.
        position_values: see `low_rank_pass.Tables` for this and the next four.
        pixel_values: likewise.
        out_bias: likewise.
        token_weight: likewise.
        token_bias: likewise.
        hidden_weight: of the MLP's first layer, in the dtype of the products.
        hidden_bias: likewise.
        mlp_weight: of the MLP's second layer.
        mlp_bias: likewise.
        eps: added to the variance of a token before the MLP.
        axis: "height" or "width".
        dtype: of the tokens that come out.
        keep: whether a backward pass may follow.

    Returns:
        The grid `(batch, height, width, dim)`, the class token of every sequence `(batch, rows, dim)`, and, for
        the backward pass alone, both as they were between attention and MLP (without `keep`, nothing).

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        TypeError: where a tensor is elsewhere than `pixels`, or not dense.
    """
    tables = _tables(
        gram,
        cross,
        square,
        pixel_pixel,
        position_pixel,
        pixel_bias,
        pixel_position,
        position_position,
        position_bias,
        position_values,
        pixel_values,
        out_bias,
        token_weight,
        token_bias,
        hidden_weight,
        hidden_bias,
        mlp_weight,
        mlp_bias,
    )
    _check(pixels, tables, axis)
    out, cls_out, middle, cls_middle = forward(pixels, tables, eps, axis, dtype, keep)
    nothing = (out.new_empty(0), out.new_empty(0))
    return out, cls_out, *(nothing if middle is None or cls_middle is None else (middle, cls_middle))


@torch.library.custom_op("septr_fast::low_rank_pass_backward", mutates_args=())
def low_rank_pass_backward(
    grad_out: Tensor,
    grad_cls_out: Tensor,
    pixels: Tensor,
    tables: list[Tensor],
    middle: Tensor,
    cls_middle: Tensor,
    eps: float,
    axis: str,
    pixels_gradient: bool,
) -> list[Tensor]:
    """Contiguous gradients of `low_rank_pass` in its tables, in their order, behind that of the pixels if asked for."""
    grad_pixels, sums = backward(
        grad_out, grad_cls_out, pixels, _tables(*tables), eps, axis, middle, cls_middle, pixels_gradient
    )
    of_tables = [total.to(tensor.dtype).contiguous() for total, tensor in zip(sums.values(), tables, strict=True)]
    return of_tables if grad_pixels is None else [grad_pixels, *of_tables]


def _tables(*tensors: Tensor) -> Tables:
    """The tables in the order of the operator's arguments."""
    position_values, pixel_values, out_bias, token_weight, token_bias = tensors[9:14]
    scores, layers = ScoreTables(*tensors[:9]), Layers(*tensors[14:])
    return Tables(scores, position_values, pixel_values, out_bias, token_weight, token_bias, layers)


def _check(pixels: Tensor, tables: Tables, axis: str) -> None:
    """Raise an error that names the tensor that does not fit the pixels."""
    check_grid("pixels", pixels)
    _, _, length, channels = along(pixels, axis).shape
    tokens, dim, hidden = 1 + length, tables.token_bias.shape[-1], tables.layers.hidden_weight.shape[0]
    heads = tables.scores.position_position.numel() // tokens**2
    shapes = {
        "gram": (channels, channels),
        "cross": (tokens, channels),
        "square": (tokens,),
        "pixel_pixel": (channels, heads * channels),
        "position_pixel": (tokens, heads, channels),
        "pixel_bias": (heads * channels,),
        "pixel_position": (channels, heads * tokens),
        "position_position": (tokens, heads, tokens),
        "position_bias": (heads * tokens,),
        "position_values": (dim, heads * tokens),
        "pixel_values": (dim, heads * channels),
        "out_bias": (dim,),
        "token_weight": (dim, channels),
        "token_bias": (tokens, dim),
        "hidden_weight": (hidden, dim),
        "hidden_bias": (hidden,),
        "mlp_weight": (dim, hidden),
        "mlp_bias": (dim,),
    }
    found = tables.tensors
    expected = {"pixels": (pixels, tuple(pixels.shape))} | {
        name: (found[name], shape) for name, shape in shapes.items()
    }
    check_tensors(pixels.device, expected)


@low_rank_pass.register_fake
def _(pixels: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dim, (axis, dtype, keep) = arguments[11].shape[0], arguments[-3:]
    _check(pixels, _tables(*arguments[:18]), axis)
    rows = along(pixels, axis)
    out = pixels.new_empty(*pixels.shape[:3], dim, dtype=dtype)
    cls_out = out.new_empty(*rows.shape[:2], dim)
    kept = (torch.empty_like(out), torch.empty_like(cls_out)) if keep else (out.new_empty(0), out.new_empty(0))
    return out, cls_out, *kept


@low_rank_pass_backward.register_fake
def _(grad_out: Tensor, grad_cls_out: Tensor, pixels: Tensor, tables: list[Tensor], *arguments: Any) -> list[Tensor]:
    asked = [pixels, *tables] if arguments[-1] else tables
    return [tensor.new_empty(tensor.shape) for tensor in asked]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.axis, _, keep = inputs
    if not keep:
        raise RuntimeError("low_rank_pass: keep=True is needed where gradients are asked for")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:])


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_cls_out: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    pixels, *tables, middle, cls_middle = ctx.saved_tensors
    asked = ctx.needs_input_grad[0]
    grads = or_zeros(grad_out, middle, middle.shape), or_zeros(grad_cls_out, cls_middle, cls_middle.shape)
    gradients = low_rank_pass_backward(*grads, pixels, tables, middle, cls_middle, ctx.eps, ctx.axis, asked)
    return *([] if asked else [None]), *gradients, *(None,) * 4


low_rank_pass.register_autograd(derivative(_differentiate), setup_context=_keep)
refuse_second_derivative(low_rank_pass_backward, "low_rank_pass")


@register_flop_formula(torch.ops.septr_fast.low_rank_pass)
def low_rank_pass_flops(pixels: Any, *arguments: Any, **_: Any) -> int:
    """Tokens, scores, values and MLP; from shapes."""
    return _flops(pixels, arguments[:18], arguments[-3], tokens=1, scores=1, values=1, mlp=2)


@register_flop_formula(torch.ops.septr_fast.low_rank_pass_backward)
def low_rank_pass_backward_flops(
    grad_out: Any, grad_cls_out: Any, pixels: Any, tables: Any, *arguments: Any, **_: Any
) -> int:
    """The gradients' products, and those of the forward pass that are done again for them."""
    *_rest, axis, asked = arguments
    return _flops(pixels, tables, axis, tokens=2 if asked else 1, scores=3, values=2, mlp=5)


def _flops(pixels: Any, tables: Any, axis: str, *, tokens: int, scores: int, values: int, mlp: int) -> int:
    batch, height, width, channels = pixels
    length_1, heads, _ = tables[4]
    dim, hidden = tables[13][1], tables[14][0]
    rows = batch * (width if axis == "height" else height)
    of_scores = heads * channels * (channels + 2 * length_1) + channels * channels
    of_values = heads * dim * (length_1 + channels) + heads * length_1 * channels
    each = tokens * channels * dim + scores * of_scores + values * of_values + mlp * dim * hidden
    return 2 * rows * length_1 * each
