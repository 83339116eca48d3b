"""A transformer's weights folded for the formulation that the plan has chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from septr_fast.algebra.direct import fold_direct
from septr_fast.algebra.folded import Folded, to_dtype
from septr_fast.algebra.low_rank import fold_low_rank
from septr_fast.algebra.merged import fold_merged
from septr_fast.algebra.mlp import fold_mlp
from septr_fast.reference import Transformer


class Tokens(NamedTuple):
    """What a low-rank transformer's tokens are made of, beside the pixels.

    Attributes:
        projection: `Linear(channels, dim)` from pixel to token.
        cls_token: `(dim,)`.
        pos_embedding: `(tokens, dim)`, the class token's position first.
    """

    projection: nn.Linear
    cls_token: Tensor
    pos_embedding: Tensor


def fold(transformer: Transformer, formulation: str, dtype: torch.dtype, tokens: Tokens | None = None) -> Folded:
    """The weights of `transformer` for products in `dtype`; low-rank tables stay in float32 or float64.

    Args:
        transformer: its layers as `septr_fast.algebra.reading.check_foldable` wants them.
        formulation: out of `septr_fast.algebra.plan.FORMULATIONS`; "class-only" takes direct weights.
        dtype: of the products.
        tokens: for "low-rank".
    """
    mlp = to_dtype(fold_mlp(transformer), dtype)
    if tokens is not None and formulation == "low-rank":
        return Folded(fold_low_rank(transformer, *tokens), mlp)
    if formulation == "merged":
        return Folded(to_dtype(fold_merged(transformer), dtype), mlp)
    return Folded(to_dtype(fold_direct(transformer), dtype), mlp)
