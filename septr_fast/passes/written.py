"""A pass as the original is written: the operations of its transformer, whatever it is made of.

For transformers whose weights cannot be folded (`septr_fast.algebra.reading.why_written`), which are called, and for so
little work on a CPU that starting operations is most of it: then the same operations follow one another without a call
of a module for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from septr_fast.algebra.folded import NO_DROPOUT
from septr_fast.algebra.reading import read_dropout, weight_of, why_written
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.observers import differentiates_forward, transforms
from septr_fast.passes.torch.chunks import rows_of
from septr_fast.reference import Attention, FeedForward, Transformer

Call = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def written_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    transformer: nn.Module,
    axis: str,
    lengths: Lengths | None = None,
    *,
    recompute: bool = False,
    last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Add positions and call `transformer` on every sequence.

    Padding is cut off before: samples of one length are called together, so that nothing of a padded token is seen.

    Args:
        grid: `(batch, height, width, dim)`.
        cls_token: `(batch, dim)`.
        pos_embedding: `(1 + length, dim)`, the class token's position first.
        transformer: from `(batch, rows, 1 + length, dim)` to the same shape.
        axis: "height" or "width".
        lengths: valid tokens of each sample; None for all.
        recompute: whether to keep only what goes in for the backward pass.
        last: whether nobody needs the grid: then it may be what came in. Where dropout draws it is made all the same,
            so that as much is drawn as by the original.

    Returns:
        The grid `(batch, height, width, dim)`, with zeros in padding, and the class token `(batch, dim)`.
    """
    call: Call = partial(_attend, transformer, last)
    if recompute and torch.is_grad_enabled() and not (transforms() or differentiates_forward()):
        call = partial(checkpoint, call, use_reentrant=False)
    rows = rows_of(grid, axis)
    if lengths is None:
        out_rows, cls_token = call(rows, cls_token, pos_embedding)
        return rows_of(out_rows, axis), cls_token
    out: Tensor | None = None
    cls_tokens = torch.empty_like(cls_token)
    for samples, valid in _alike(lengths):
        own = rows[samples]
        own = own[:, :, :valid] if lengths.axis == axis else own[:, :valid]
        some, token = call(own, cls_token[samples], pos_embedding[: 1 + own.shape[2]])
        out = some.new_zeros(rows.shape) if out is None else out
        out = out.index_put((samples,), _padded(some, rows))
        cls_tokens = cls_tokens.to(token.dtype).index_put((samples,), token)
    return (grid if out is None else rows_of(out, axis)), cls_tokens


def _attend(
    transformer: Any, last: bool, rows: Tensor, cls_token: Tensor, pos_embedding: Tensor
) -> tuple[Tensor, Tensor]:
    """`reference.attend` on a class token `(batch, dim)` and positions `(tokens, dim)`."""
    in_front = cls_token[:, None, None].expand(-1, rows.shape[1], -1, -1)
    tokens = torch.cat([in_front, rows], dim=2) + pos_embedding
    if why_written(transformer) is not None:
        tokens = transformer(tokens)
    elif last and read_dropout(transformer) == NO_DROPOUT:
        return rows, _plainly(transformer, tokens, tokens[:, :, :1])[:, :, 0].mean(1)
    else:
        tokens = _plainly(transformer, tokens, tokens)
    return tokens[:, :, 1:], tokens[:, :, 0].mean(1)


def _plainly(transformer: Transformer, x: Tensor, asking: Tensor) -> Tensor:
    """What `transformer` makes of tokens of `x` `(batch, rows, tokens, dim)`, by the operations of its modules.

    Args:
        transformer: whose modules are those of the original.
        x: what is attended to.
        asking: all of `x`, or its first tokens, of which results are wanted.
    """
    attending, transforming = transformer.sublayers
    asking = _attention(cast(Attention, attending.fn), _normalized(attending.norm, x), asking.shape[2]) + asking
    first, _, dropout, second, last = cast(FeedForward, transforming.fn).net
    hidden = _dropped(dropout, functional.gelu(_linear(cast(nn.Linear, first), _normalized(transforming.norm, asking))))
    return _dropped(last, _linear(cast(nn.Linear, second), hidden)) + asking


def _attention(attention: Attention, x: Tensor, queries: int) -> Tensor:
    """What the first `queries` tokens of `x` attend to."""
    batch, rows, tokens, _ = x.shape
    heads, width, weight = attention.heads, attention.dim_head, weight_of(attention.to_qkv)
    if queries == tokens:
        each = functional.linear(x, weight).view(batch, rows, tokens, 3, heads, width)
        query, key, value = each.permute(3, 0, 1, 4, 2, 5).unbind()
    else:
        query = functional.linear(x[:, :, :queries], weight[: heads * width])
        query = query.view(batch, rows, queries, heads, width).transpose(2, 3)
        each = functional.linear(x, weight[heads * width :]).view(batch, rows, tokens, 2, heads, width)
        key, value = each.permute(3, 0, 1, 4, 2, 5).unbind()
    scores = torch.matmul(query, key.transpose(-1, -2)) * attention.dim_head**-0.5
    attended = torch.matmul(scores.softmax(dim=-1), value).transpose(2, 3).flatten(3)
    if isinstance(attention.to_out, nn.Identity):
        return attended
    return _dropped(attention.to_out[1], _linear(cast(nn.Linear, attention.to_out[0]), attended))


def _normalized(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x, weight_of(linear), linear.bias)


def _dropped(dropout: nn.Module, x: Tensor) -> Tensor:
    if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p:
        return functional.dropout(x, dropout.p)
    return x


def _alike(lengths: Lengths) -> Iterator[tuple[Tensor, int]]:
    """Which samples share each length, and the length."""
    for valid in sorted(set(lengths.valid.tolist())):
        yield (lengths.valid == valid).nonzero().flatten(), valid


def _padded(some: Tensor, rows: Tensor) -> Tensor:
    """`some` `(samples, rows, length, dim)` with zeros up to the size of `rows` `(batch, rows, length, dim)`."""
    missing = [whole - own for whole, own in zip(rows.shape[1:3], some.shape[1:3], strict=True)]
    return functional.pad(some, (0, 0, 0, missing[1], 0, missing[0]))
