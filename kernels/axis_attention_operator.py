"""Attention along one axis as a registered operator, differentiable once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .axis_attention import ClassGradients, Operands, attend, attend_backward
from .operators import along, check_grid, check_tensors, derivative, or_zeros, refuse_second_derivative


@torch.library.custom_op("septr_fast::axis_attention", mutates_args=())
def axis_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cls_query: Tensor,
    cls_key: Tensor,
    cls_value: Tensor | None,
    heads: int,
    axis: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention along one axis of a grid, the class token in front of every sequence.

    Args:
        query: `(batch, height, width, heads * head_dim)`, the scale inside; float32, float16 or bfloat16.
        key: `(batch, height, width, key_heads * head_dim)`; `key_heads` divides `heads`.
        value: like `key`; None where the keys are the values too.
        cls_query: `(batch, heads * head_dim)`.
        cls_key: `(batch, key_heads * head_dim)`.
        cls_value: like `cls_key`; None where the keys are the values too.
        heads: number of heads of the queries.
        axis: "height" or "width", the axis that a sequence runs along.

    Returns:
        The output `(batch, height, width, heads * head_dim)`, that of the class token in every sequence
        `(batch, rows, heads * head_dim)`, and the log-sum-exp of their scores in the two parts of `attend`,
        float32, `(batch, rows, heads, length, 2)` and `(batch, rows, heads, 2)`, through which no gradient flows.

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        TypeError: where a tensor is elsewhere than `query`, or not dense.
    """
    operands = _operands(query, key, value, cls_query, cls_key, cls_value, heads, axis)
    out, cls_out, lse, cls_lse = _outputs(query, cls_query, heads, axis)
    attend(operands, _per_head(out, heads, axis), cls_out.unflatten(2, (heads, -1)), lse.transpose(2, 3), cls_lse)
    return out, cls_out, lse, cls_lse


@torch.library.custom_op("septr_fast::axis_attention_backward", mutates_args=())
def axis_attention_backward(
    grad_out: Tensor,
    grad_cls_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cls_query: Tensor,
    cls_key: Tensor,
    cls_value: Tensor | None,
    lse: Tensor,
    cls_lse: Tensor,
    heads: int,
    axis: str,
) -> list[Tensor]:
    """Gradients of `axis_attention` in its tensors, in their order, without those that are None."""
    operands = _operands(query, key, value, cls_query, cls_key, cls_value, heads, axis)
    key_heads = operands.key.shape[3]
    grad_query, grad_key = torch.empty(query.shape, dtype=query.dtype, device=query.device), _empty_like(key)
    grad_value = None if value is None else _empty_like(value)
    batch, rows = operands.key.shape[:2]
    grad_cls = ClassGradients.empty(operands, batch * rows)
    attend_backward(
        operands,
        lse.transpose(2, 3),
        cls_lse,
        _per_head(grad_out, heads, axis),
        grad_cls_out.unflatten(2, (heads, -1)),
        _per_head(grad_query, heads, axis),
        _per_head(grad_key, key_heads, axis),
        None if grad_value is None else _per_head(grad_value, key_heads, axis),
        grad_cls,
    )
    grad_cls_query, grad_cls_key, grad_cls_value = (
        None if g is None else g.flatten(1).to(query.dtype) for g in grad_cls.sums(batch, rows)
    )
    gradients = (grad_query, grad_key, grad_value, grad_cls_query, grad_cls_key, grad_cls_value)
    return [gradient for gradient in gradients if gradient is not None]


def _per_head(grid: Tensor, heads: int, axis: str) -> Tensor:
    """View `(batch, height, width, heads * head_dim)` as `(batch, rows, length, heads, head_dim)`."""
    return along(grid, axis).unflatten(3, (heads, -1))


def _operands(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cls_query: Tensor,
    cls_key: Tensor,
    cls_value: Tensor | None,
    heads: int,
    axis: str,
) -> Operands:
    """Check the operator's arguments and view them per head."""
    check_grid("query", query)
    check_grid("key", key)
    batch, height, width, features = query.shape
    if heads < 1 or features % heads:
        raise ValueError(f"heads: expected a divisor of the {features} features of query, got {heads}")
    head_dim = features // heads
    key_heads = key.shape[-1] // head_dim
    if key.shape[-1] % head_dim or key_heads < 1 or heads % key_heads or key.shape[:3] != query.shape[:3]:
        raise ValueError(
            f"key: expected ({batch}, {height}, {width}, a divisor of {heads} times {head_dim}), got {tuple(key.shape)}"
        )
    if (value is None) != (cls_value is None):
        raise ValueError("cls_value: expected None where value is None, and only there")
    keys = (batch, key.shape[3])
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "query": (query, tuple(query.shape)),
        "key": (key, tuple(key.shape)),
        "value": (value, tuple(key.shape)),
        "cls_query": (cls_query, (batch, features)),
        "cls_key": (cls_key, keys),
        "cls_value": (cls_value, keys),
    }
    check_tensors(query.device, expected)
    return Operands(
        query=_per_head(query, heads, axis),
        key=_per_head(key, key_heads, axis),
        value=None if value is None else _per_head(value, key_heads, axis),
        cls_query=cls_query.unflatten(1, (heads, -1)),
        cls_key=cls_key.unflatten(1, (key_heads, -1)),
        cls_value=None if cls_value is None else cls_value.unflatten(1, (key_heads, -1)),
    )


def _outputs(query: Tensor, cls_query: Tensor, heads: int, axis: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, rows, length, features = along(query, axis).shape
    return (
        _empty_like(query),
        cls_query.new_empty(batch, rows, features),
        query.new_empty(batch, rows, heads, length, 2, dtype=torch.float32),
        query.new_empty(batch, rows, heads, 2, dtype=torch.float32),
    )


def _empty_like(x: Tensor) -> Tensor:
    """Contiguous memory for `x`, whatever the strides of `x`."""
    return x.new_empty(x.shape)


@axis_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cls_query: Tensor,
    cls_key: Tensor,
    cls_value: Tensor | None,
    heads: int,
    axis: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _operands(query, key, value, cls_query, cls_key, cls_value, heads, axis)
    return _outputs(query, cls_query, heads, axis)


@axis_attention_backward.register_fake
def _(
    grad_out: Tensor,
    grad_cls_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cls_query: Tensor,
    cls_key: Tensor,
    cls_value: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    tensors = (query, key, value, cls_query, cls_key, cls_value)
    return [_empty_like(tensor) for tensor in tensors if tensor is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.heads, ctx.axis = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:])


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_cls_out: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    shape = (*saved[7].shape[:2], saved[0].shape[3])
    grad_out, grad_cls_out = or_zeros(grad_out, saved[0], saved[0].shape), or_zeros(grad_cls_out, saved[3], shape)
    gradients = iter(axis_attention_backward(grad_out, grad_cls_out, *saved, ctx.heads, ctx.axis))
    return *(None if tensor is None else next(gradients) for tensor in saved[:6]), None, None


axis_attention.register_autograd(derivative(_differentiate), setup_context=_keep)
refuse_second_derivative(axis_attention_backward, "axis_attention")


@register_flop_formula(torch.ops.septr_fast.axis_attention)
def axis_attention_flops(query: Any, key: Any, value: Any, cls_query: Any, *args: Any, **_: Any) -> int:
    """Two products of all tokens, the class token included, with all keys; from shapes."""
    heads, axis = args[-2:]
    return _flops(query, heads, axis, products=2)


@register_flop_formula(torch.ops.septr_fast.axis_attention_backward)
def axis_attention_backward_flops(grad_out: Any, *args: Any, **_: Any) -> int:
    """Seven products: the scores and the gradient of the attention twice, and three gradients.

    Where the keys of a sequence are more than a tile the first two are done once more, for Δ.
    """
    heads, axis = args[-2:]
    return _flops(grad_out, heads, axis, products=7)


def _flops(query: tuple[int, ...], heads: int, axis: str, products: int) -> int:
    batch, height, width, features = query
    rows, length = (width, height) if axis == "height" else (height, width)
    return 2 * products * batch * rows * (length + 1) ** 2 * features
