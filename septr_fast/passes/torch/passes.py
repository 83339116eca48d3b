"""The passes of `septr_fast.passes.dispatch` in plain PyTorch, for every device.

The data's way: a pass takes the grid in chunks of rows (`chunks`), joins the class token to each row while it copies
the chunk, runs the transformer on `(rows, tokens, dim)`, and writes the chunk back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from septr_fast.algebra.folded import Direct, Folded, LowRank, Merged, Mlp
from septr_fast.passes.inputs import place
from septr_fast.passes.lengths import keys, within
from septr_fast.passes.observers import differentiates_forward, transforms
from septr_fast.passes.settings import Settings
from septr_fast.passes.sublayers import mlp_sublayer
from septr_fast.passes.torch import merged_training
from septr_fast.passes.torch.attention import (
    STREAMED_TOKENS,
    attention_sublayer,
    class_only_attention,
    low_rank_attention,
)
from septr_fast.passes.torch.chunks import chunk_size, chunked, rows_of
from septr_fast.passes.torch.joined import assembled, class_token_of
from septr_fast.passes.torch.linear import linear


def axis_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.axis_pass`."""
    if isinstance(weights.attention, Merged) and not settings.drops and settings.lengths is None:
        tensors = (grid, cls_token, pos_embedding, *merged_training.weights_of(weights.attention, weights.mlp))
        if merged_training.serves(*tensors) and grid.shape[0] and pos_embedding.shape[0] <= STREAMED_TOKENS:
            return _merged_training_pass(grid, cls_token, pos_embedding, weights, settings)
    return plain_axis_pass(grid, cls_token, pos_embedding, weights, settings)


def plain_axis_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> tuple[Tensor, Tensor]:
    """`axis_pass` by autograd, whatever the pass."""
    dropout, sublayer = settings.dropped, _sublayers(settings)
    rows = rows_of(grid, settings.axis)
    tokens, dim = rows.shape[2] + 1, rows.shape[3]
    widest = weights.attention.query_weight if isinstance(weights.attention, Merged) else _direct(weights).qkv_weight

    def transform(operands: Any, body: Tensor, cls_token: Tensor, valid: Tensor | None = None) -> Tensor:
        positions, attention, mlp = operands
        front = cls_token[:, None, None].expand(-1, body.shape[1], 1, dim)
        x = torch.cat([front, body], dim=2)
        x = torch.add(x, positions, out=place(x) if x.dtype == positions.dtype else None)
        padding = _padding(valid, *x.shape[1:3])
        y = sublayer(lambda x: attention_sublayer(x, attention, padding, dropout.attention), x.flatten(0, 1))
        return sublayer(lambda y: mlp_sublayer(y, mlp, dropout), y).view_as(x)

    valid = keys(settings.lengths, settings.axis)
    chunks = chunked(rows, tokens * widest.shape[0] * widest.element_size(), cls_token, *_given(valid))
    out = grid if settings.in_place else None
    return assembled(transform, (pos_embedding, *weights), chunks, grid.shape[:3], settings, out)


def low_rank_pass(pixels: Tensor, weights: Folded, settings: Settings) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.low_rank_pass`."""
    dropout, sublayer = settings.dropped, _sublayers(settings)
    attention, dtype = cast(LowRank, weights.attention), weights.mlp.out_weight.dtype
    rows = rows_of(pixels, settings.axis)
    tokens, dim = attention.token_bias.shape
    residual_dtype = pixels.dtype if settings.dtype is None else settings.dtype

    def attention_sublayer(s: Tensor, attention: LowRank, padding: Tensor | None) -> Tensor:
        s = s.to(attention.square.dtype)
        token = linear(s, attention.token_weight)
        x = torch.add(token, attention.token_bias, out=place(token)).to(residual_dtype)
        attended = F.dropout(low_rank_attention(s, attention, dtype, padding), dropout.attention)
        return torch.add(x, attended, out=place(x) if x.dtype == attended.dtype else None)

    def transform(operands: Any, body: Tensor, valid: Tensor | None = None) -> Tensor:
        attention, mlp = operands
        s = F.pad(body, (0, 0, 1, 0))
        padding = _padding(valid, *s.shape[1:3])
        y = sublayer(lambda s: attention_sublayer(s, attention, padding), s.flatten(0, 1))
        return sublayer(lambda y: mlp_sublayer(y, mlp, dropout), y).view(*s.shape[:3], dim)

    chunks = chunked(rows, 4 * tokens * attention.heads * tokens, *_given(keys(settings.lengths, settings.axis)))
    return assembled(transform, tuple(weights), chunks, pixels.shape[:3], settings)


def class_only_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> Tensor:
    """See `septr_fast.passes.dispatch.class_only_pass`."""
    dropout, sublayer = settings.dropped, _sublayers(settings)
    rows = rows_of(grid, settings.axis)

    def transform(operands: Any, body: Tensor, cls_token: Tensor, valid: Tensor | None = None) -> Tensor:
        positions, attention, mlp = operands

        def of_rows(body: Tensor, cls_token: Tensor) -> Tensor:
            y = class_only_attention(body + positions, cls_token, attention, valid)
            y = cls_token.unsqueeze(1) + F.dropout(y, dropout.attention)
            return mlp_sublayer(y, mlp, dropout)

        return sublayer(of_rows, body, cls_token)

    valid = keys(settings.lengths, settings.axis)
    row_bytes = rows.shape[2] * rows.shape[3] * grid.element_size()
    chunks = chunked(rows, row_bytes, cls_token + pos_embedding[0], *_given(valid))
    return class_token_of(transform, (pos_embedding[1:], *weights), chunks, settings)


def _direct(weights: Folded) -> Direct:
    return cast(Direct, weights.attention)


def _given(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)


def _padding(valid: Tensor | None, rows: int, tokens: int) -> Tensor | None:
    """Which tokens of `(samples * rows, tokens)` are padding, the class token in front never; None where none is."""
    if valid is None:
        return None
    return ~F.pad(within(valid, tokens - 1), (1, 0), value=True).repeat_interleave(rows, 0)


def _sublayers(settings: Settings) -> Callable[..., Tensor]:
    """What calls the functions of a pass, so that they are computed again in the backward pass where that is set."""
    return partial(_sublayer, recompute=settings.recompute, draws=settings.drops)


def _sublayer(
    function: Callable[..., Tensor], x: Tensor, *args: Tensor, recompute: bool = False, draws: bool = False
) -> Tensor:
    """`function(x, *args)`; with `recompute` it keeps only its inputs for the backward pass.

    `draws` says whether the function draws random numbers, which then have to be the same again. The transforms
    of `torch.func` and forward mode cannot recompute: under them everything is kept.
    """
    if recompute and torch.is_grad_enabled() and not (transforms() or differentiates_forward()):
        return checkpoint(function, x, *args, use_reentrant=False, preserve_rng_state=draws)
    return function(x, *args)


def _merged_training_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> tuple[Tensor, Tensor]:
    """`plain_axis_pass` with a backward pass of its own, in the same chunks."""
    attention, mlp = cast(Merged, weights.attention), weights.mlp
    rows = rows_of(grid, settings.axis)
    chunk = chunk_size(rows, pos_embedding.shape[0] * attention.query_weight.numel() // rows.shape[3] * 4)
    own = merged_training.Settings(attention.heads, attention.eps, mlp.eps, chunk, settings.recompute)
    tensors = merged_training.weights_of(attention, mlp)
    tokens, cls_token = merged_training.run(rows, cls_token, pos_embedding, tensors, own, _merged_rows)
    return rows_of(tokens, settings.axis), cls_token


def _merged_rows(
    settings: merged_training.Settings, rows: Tensor, cls_token: Tensor, pos_embedding: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`plain_axis_pass` over rows that lie in a grid as they are."""
    attention, mlp = Merged(settings.heads, settings.eps, *weights[:4]), Mlp(settings.mlp_eps, *weights[4:])
    return plain_axis_pass(rows, cls_token, pos_embedding, Folded(attention, mlp), Settings("width"))
