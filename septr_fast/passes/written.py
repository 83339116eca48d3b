"""A pass as the original is written: its transformer is called, whatever it is made of.

For transformers whose weights cannot be folded (`septr_fast.algebra.reading.why_written`), and for so little work on a
CPU that starting operations is most of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from septr_fast.passes.lengths import Lengths
from septr_fast.passes.observers import differentiates_forward, transforms
from septr_fast.passes.torch.chunks import rows_of

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

    Returns:
        The grid `(batch, height, width, dim)`, with zeros in padding, and the class token `(batch, dim)`.
    """
    call: Call = partial(_attend, transformer)
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


def _attend(transformer: nn.Module, rows: Tensor, cls_token: Tensor, pos_embedding: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.attend` on a class token `(batch, dim)` and positions `(tokens, dim)`."""
    in_front = cls_token[:, None, None].expand(-1, rows.shape[1], -1, -1)
    tokens: Tensor = transformer(torch.cat([in_front, rows], dim=2) + pos_embedding)
    return tokens[:, :, 1:], tokens[:, :, 0].mean(1)


def _alike(lengths: Lengths) -> Iterator[tuple[Tensor, int]]:
    """Which samples share each length, and the length."""
    for valid in sorted(set(lengths.valid.tolist())):
        yield (lengths.valid == valid).nonzero().flatten(), valid


def _padded(some: Tensor, rows: Tensor) -> Tensor:
    """`some` `(samples, rows, length, dim)` with zeros up to the size of `rows` `(batch, rows, length, dim)`."""
    missing = [whole - own for whole, own in zip(rows.shape[1:3], some.shape[1:3], strict=True)]
    return nn.functional.pad(some, (0, 0, 0, missing[1], 0, missing[0]))
