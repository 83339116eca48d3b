"""Merged: the QK and the OV circuit of each head as one matrix each; keys and values are the normalized tokens.

The scores of head h are `(x̂_i γ + β) M (γ x̂_j + β)ᵀ` with the QK circuit `M = s W_qᵀ W_k`. Expanded, the terms
without `x̂_j` are constant over the keys and cancel in the softmax; left are `x̂_i (γ M γ) x̂_jᵀ + ((β M) γ) x̂_jᵀ`: a
projection of the query token, with a bias, against the normalized token itself. With the OV circuit `N = (W_o W_v)ᵀ`
the output is `Σ_h P_h (x̂ γ + β) N_h = Σ_h (P_h x̂) (γ N_h) + Σ_h β N_h`, because the rows of `P_h` sum to one. Keys and
values of every head are `x̂`: multi-query attention with one tensor for both.

References: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), for the QK and OV circuits;
Shazeer, "Fast Transformer Decoding" (2019), for multi-query attention. Notation: `septr_fast.algebra.folded`.
"""

from __future__ import annotations

import torch

from septr_fast.algebra.folded import Merged
from septr_fast.algebra.reading import folded_out_bias, read_attention
from septr_fast.reference import Transformer


def fold_merged(transformer: Transformer) -> Merged:
    """Merge the QK and OV circuits of the attention sublayer of `transformer`."""
    weights = read_attention(transformer)
    key = weights.per_head(weights.key * weights.gamma)
    circuit = torch.bmm(key.transpose(1, 2), weights.per_head(weights.query * weights.gamma))
    query_bias = torch.bmm(weights.per_head(weights.query @ weights.beta).unsqueeze(1), key)
    value = weights.value * weights.gamma
    if weights.out_weight is None:
        out_weight = value
    else:
        out = weights.out_weight.unflatten(1, (weights.heads, weights.dim_head)).transpose(0, 1)
        out_weight = torch.bmm(out, weights.per_head(value)).transpose(0, 1).flatten(1)
    return Merged(
        heads=weights.heads,
        eps=weights.eps,
        query_weight=circuit.flatten(0, 1),
        query_bias=query_bias.flatten(),
        out_weight=out_weight,
        out_bias=folded_out_bias(weights),
    )
