"""The MLP with its LayerNorm folded into the first layer: `W_1 (x̂ γ + β) + b_1 = (W_1 γ) x̂ + (W_1 β + b_1)`."""

from __future__ import annotations

from typing import cast

from torch import nn

from septr_fast.algebra.folded import Mlp, accumulation_dtype
from septr_fast.algebra.reading import weight_of
from septr_fast.reference import FeedForward, Transformer


def fold_mlp(transformer: Transformer) -> Mlp:
    """Fold the LayerNorm of the MLP sublayer of `transformer` into its first layer."""
    sublayer = transformer.sublayers[1]
    norm = sublayer.norm
    hidden, _, _, out, _ = cast("tuple[nn.Linear, ...]", tuple(cast(FeedForward, sublayer.fn).net))
    dtype = accumulation_dtype(norm.weight.dtype)
    weight = weight_of(hidden).to(dtype)
    return Mlp(
        eps=norm.eps,
        hidden_weight=weight * norm.weight.to(dtype),
        hidden_bias=hidden.bias.to(dtype) + weight @ norm.bias.to(dtype),
        out_weight=weight_of(out).to(dtype),
        out_bias=out.bias.to(dtype),
    )
