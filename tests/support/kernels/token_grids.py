"""Grids of tokens in strides that a kernel may meet."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")


def arranged(values: Tensor, layout: str) -> Tensor:
    """`values` `(batch, rows, length, dim)` in other strides; the rows repeat the first where "expanded"."""
    if layout == "contiguous":
        return values.contiguous()
    if layout == "transposed":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded":
        return values[:, :1].contiguous().expand_as(values)
    assert layout == "sliced", layout
    batch, rows, length, dim = values.shape
    wide = torch.full((batch, 2 * rows, length + 3, 2 * dim), torch.nan, dtype=values.dtype, device=values.device)
    view = wide[:, ::2, 2:-1, ::2]
    view.copy_(values)
    return view


def strides_of(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a grid of `shape` to be written, with gaps where "sliced"."""
    return arranged(torch.empty(shape), layout).stride()
