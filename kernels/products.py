"""Matrix products between the kernels, by the vendor's library."""

from __future__ import annotations

import torch
from torch import Tensor


def outer(left: Tensor, right: Tensor) -> Tensor:
    """`leftᵀ right` of `(tokens, m)` and `(tokens, n)` as float32 `(m, n)`: a weight's gradient from one chunk.

    The products of 16-bit values are summed up and returned in float32, so that chunks can be added up. Tensors
    without data go a GPU's way.
    """
    if left.dtype == torch.float32:
        return left.t() @ right
    if left.is_cuda or left.is_meta:
        return torch.mm(left.t(), right, out_dtype=torch.float32)
    return left.t().float() @ right.float()


def column_sums(x: Tensor) -> Tensor:
    """The sum over the tokens of `(tokens, n)` as float32 `(n,)`: a bias's gradient from one chunk."""
    return x.sum(0, dtype=torch.float32)
