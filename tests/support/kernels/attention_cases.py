"""Inputs of `axis_attention` in each of its forms, and plain PyTorch's attention to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from support.tolerance import assert_all_as_good, assert_as_good
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.axis_attention_operator import axis_attention

Product = Callable[[Tensor, Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Operation = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]

RESULTS = ("out", "cls_out", "lse", "cls_lse")
KERNELS = (
    "axis_attention_fwd",
    "axis_attention_bwd_query",
    "axis_attention_bwd_key",
    "class_query_fwd",
    "class_query_bwd",
)
BY_HEADS = ("axis_attention_fwd", "axis_attention_bwd_query")
"""Of these those whose programs take one head, or all that share keys."""


class Form(NamedTuple):
    """How many heads share a key, and whether values are the keys themselves."""

    heads: int
    key_heads: int
    separate: bool


MERGED = Form(3, 1, False)
DIRECT = Form(2, 2, True)
FORMS = {
    "merged": MERGED,
    "direct": DIRECT,
    "multi-query": Form(3, 1, True),
    "grouped": Form(4, 2, True),
    "grouped-merged": Form(4, 2, False),
}


class Inputs(NamedTuple):
    """The tensors of `axis_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor | None
    cls_query: Tensor
    cls_key: Tensor
    cls_value: Tensor | None

    def given(self) -> dict[str, Tensor]:
        """Those that are not None, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def changed(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Each tensor after `change`."""
        return Inputs(*(None if tensor is None else change(tensor) for tensor in self))


def draw(
    form: Form,
    shape: tuple[int, int, int],
    head_dim: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> Inputs:
    """Normal inputs times `scale` for a grid of `shape` `(batch, height, width)`."""

    def normal(*sizes: int) -> Tensor:
        return (scale * torch.randn(sizes, device=device)).to(dtype)

    queries, keys = form.heads * head_dim, form.key_heads * head_dim
    inputs = Inputs(
        query=normal(*shape, queries),
        key=normal(*shape, keys),
        value=normal(*shape, keys) if form.separate else None,
        cls_query=normal(shape[0], queries),
        cls_key=normal(shape[0], keys),
        cls_value=normal(shape[0], keys) if form.separate else None,
    )
    return inputs._replace(query=inputs.query * head_dim**-0.5, cls_query=inputs.cls_query * head_dim**-0.5)


def draw_far_below_zero(form: Form, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Inputs:
    """Inputs whose scores are all below -1000, such that their products are exact in float32 and with them the scores.

    The grid has 2 × 2 sequences of 7 tokens along its width; heads have 16 features.
    """
    inputs = draw(form, grid_shape("width", length=7, batch=2), 16, device, dtype)
    inputs = inputs.changed(lambda x: (4 * x).round() / 64)
    direction = torch.ones(16, device=device, dtype=dtype)
    return inputs._replace(
        query=inputs.query - 10 * direction.repeat(form.heads),
        cls_query=inputs.cls_query - 10 * direction.repeat(form.heads),
        key=inputs.key + 16 * direction.repeat(form.key_heads),
        cls_key=inputs.cls_key + 16 * direction.repeat(form.key_heads),
    )


def grid_shape(axis: str, length: int, rows: int = 2, batch: int = 1) -> tuple[int, int, int]:
    """`(batch, height, width)` of `rows` sequences of `length` tokens along `axis`."""
    return (batch, length, rows) if axis == "height" else (batch, rows, length)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of `(…, tokens, head_dim)` by softmax, and the log-sum-exp; autograd's own backward."""
    scores = query @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value, logsumexp(scores)


def streamed_attention(
    query: Tensor, key: Tensor, value: Tensor, product: Product = torch.matmul
) -> tuple[Tensor, Tensor]:
    """The same from the log-sum-exp alone, with the backward formulas of FlashAttention (Dao et al., 2022)."""
    return Streamed.apply(query, key, value, product)


class Streamed(torch.autograd.Function):
    """See `streamed_attention`; the statistics are float32, products are rounded to the operands' dtype."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, product: Product) -> tuple[Tensor, Tensor]:
        lse = logsumexp(product(query, key.transpose(-1, -2)))
        p = Streamed.probabilities(query, key, lse, product)
        out = product(p.to(value.dtype), value)
        ctx.product = product
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(query, key, value, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, lse = ctx.saved_tensors
        product, dtype = ctx.product, query.dtype
        p = Streamed.probabilities(query, key, lse, product)
        dp = product(grad, value.transpose(-1, -2)).to(lse.dtype)
        ds = (p * (dp - (p * dp).sum(-1, keepdim=True))).to(dtype)
        return (
            product(ds, key),
            product(ds.transpose(-1, -2), query),
            product(p.to(dtype).transpose(-1, -2), grad),
            None,
        )

    @staticmethod
    def probabilities(query: Tensor, key: Tensor, lse: Tensor, product: Product) -> Tensor:
        scores = product(query, key.transpose(-1, -2)).to(lse.dtype)
        return (scores - lse.unsqueeze(-1)).exp()


def logsumexp(scores: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension, in float32 at least; no gradient."""
    return scores.detach().to(torch.promote_types(scores.dtype, torch.float32)).logsumexp(-1)


def joined_parts(lse: Tensor) -> Tensor:
    """The log-sum-exp from its two parts `(…, 2)`."""
    return lse[..., 0] + lse[..., 1].log()


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cls_query: Tensor,
    cls_key: Tensor,
    cls_value: Tensor | None,
    heads: int,
    axis: str,
    attend: Attend = softmax_attention,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `axis_attention` computes, with the class token in front of every sequence, in the inputs' dtype."""
    head_dim = query.shape[-1] // heads
    rows = query.shape[2 if axis == "height" else 1]

    def tokens(grid: Tensor, cls: Tensor) -> Tensor:
        """`(batch, rows, heads, 1 + length, head_dim)`."""
        body = grid.transpose(1, 2) if axis == "height" else grid
        joined = torch.cat([cls[:, None, None].expand(-1, rows, 1, -1), body], dim=2)
        per_head = joined.unflatten(3, (-1, head_dim)).transpose(2, 3)
        return per_head.repeat_interleave(heads // per_head.shape[2], dim=2)

    queries, keys = tokens(query, cls_query), tokens(key, cls_key)
    values = keys if value is None or cls_value is None else tokens(value, cls_value)
    attended, lse = attend(queries, keys, values)
    joined = attended.transpose(2, 3).flatten(3)
    body = joined[:, :, 1:]
    return body.transpose(1, 2) if axis == "height" else body, joined[:, :, 0], lse[..., 1:], lse[..., 0]


def output_gradients(inputs: Inputs, heads: int, axis: str) -> tuple[Tensor, Tensor]:
    """Random gradients of the output and of the class token's, in the inputs' dtype."""
    out, cls_out, *_ = plain_attention(*inputs.changed(lambda x: x.to("meta")), heads, axis)
    return tuple(torch.randn(x.shape, device=inputs.query.device).to(inputs.query.dtype) for x in (out, cls_out))


def step(attention: Operation, inputs: Inputs, heads: int, axis: str, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Results of `attention` and the gradients of its inputs, by name, from the outputs' `gradients`."""
    leaves = inputs.changed(lambda x: x.detach().requires_grad_())
    results = attention(*leaves, heads, axis)
    given = leaves.given()
    found = torch.autograd.grad(results[:2], list(given.values()), [g.to(results[0].dtype) for g in gradients])
    named = dict(zip(RESULTS, (result.detach() for result in results), strict=True))
    if attention is axis_attention:
        named |= {name: joined_parts(named[name]) for name in ("lse", "cls_lse")}
    return named | dict(zip(given, found, strict=True))


def tiles(
    block_q: int = 16, block_k: int = 16, block_c: int = 256, heads_together: bool = False
) -> dict[str, launch.Config]:
    """Configurations of all kernels of `axis_attention` with tiles of these sizes.

    With `heads_together` a program takes all heads that share keys, where a kernel can.
    """
    sizes = {"BLOCK_Q": block_q, "BLOCK_K": block_k, "BLOCK_C": block_c}
    switched = {name: {"TOGETHER": 1} for name in BY_HEADS if heads_together}
    return {
        name + suffix: launch.Config({**sizes, **switched.get(name, {})})
        for name in KERNELS
        for suffix in ("", "_direct")
    }


def check(
    inputs: Inputs,
    heads: int,
    axis: str,
    gradients: Sequence[Tensor] | None = None,
    attend: Attend = softmax_attention,
    *,
    together: bool = False,
) -> None:
    """Assert that the kernels are as good as plain PyTorch, from the outputs' `gradients` or random ones.

    With `together` results of few values are compared together.
    """
    gradients = gradients or output_gradients(inputs, heads, axis)
    oracle = step(plain_attention, inputs.changed(Tensor.double), heads, axis, gradients)
    plain = step(partial(plain_attention, attend=attend), inputs, heads, axis, gradients)
    found = step(axis_attention, inputs, heads, axis, gradients)
    compare = assert_all_as_good if together else assert_as_good
    compare(*(with_one_lse(each) for each in (found, plain, oracle)))


def with_one_lse(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The log-sum-exp of grid tokens and class token as one result: a few values alone have no mean error."""
    joined = torch.cat([results["lse"].flatten(), results["cls_lse"].flatten()])
    return {name: x for name, x in results.items() if name != "cls_lse"} | {"lse": joined}
