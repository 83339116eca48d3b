"""Direct: separate queries, keys and values, the LayerNorm and the scale folded in.

The affine part moves into the projection: `(x̂ γ + β) Wᵀ = x̂ (W γ)ᵀ + W β`. The scale `s` moves into the query rows.
Notation: `septr_fast.algebra.folded`.
"""

from __future__ import annotations

import torch

from septr_fast.algebra.folded import Direct
from septr_fast.algebra.reading import read_attention
from septr_fast.reference import Transformer


def fold_direct(transformer: Transformer) -> Direct:
    """Fold the attention sublayer of `transformer` for separate queries, keys and values."""
    weights = read_attention(transformer)
    qkv = torch.cat([weights.query, weights.key, weights.value])
    return Direct(
        heads=weights.heads,
        eps=weights.eps,
        qkv_weight=qkv * weights.gamma,
        qkv_bias=qkv @ weights.beta,
        out_weight=weights.out_weight,
        out_bias=weights.out_bias,
    )
