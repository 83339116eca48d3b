"""Parts of a pass that both backends compute in plain PyTorch: what is small, and the MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from septr_fast.algebra.folded import Direct, Dropout, Mlp
from septr_fast.passes.inputs import place
from septr_fast.passes.torch.linear import add_linear, linear


def normalize(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Zero mean and unit variance over the last dimension, without the affine part, in `dtype`."""
    return F.layer_norm(x, (int(x.shape[-1]),), eps=eps).to(dtype)


def mlp_sublayer(x: Tensor, weights: Mlp, dropout: Dropout) -> Tensor:
    """Tokens `(…, dim)` and what the MLP adds to them, normalization and dropout included; in the place of `x`."""
    return add_linear(x, mlp_hidden(x, weights, dropout), weights.out_weight, weights.out_bias, dropout.out)


def mlp_hidden(x: Tensor, weights: Mlp, dropout: Dropout) -> Tensor:
    """What the first layer of the MLP makes of tokens `(…, dim)`, normalization and dropout included."""
    normalized = normalize(x, weights.eps, weights.out_weight.dtype)
    hidden = linear(normalized, weights.hidden_weight, weights.hidden_bias)
    if place(hidden) is None:
        hidden = F.gelu(hidden)
    else:
        torch.ops.aten.gelu.out(hidden, out=hidden)
    return F.dropout(hidden, dropout.hidden)


def class_query(cls_token: Tensor, weights: Direct) -> tuple[Tensor, Tensor]:
    """What the class token asks normalized tokens, so that no key is projected.

    The query is taken back through the key weights; the key bias cancels in the softmax.

    Args:
        cls_token: `(batch, dim)`, position added.
        weights: folded projections.

    Returns:
        The normalized class token `(batch, dim)` and the query `(batch, heads, dim)`.
    """
    query_weight, key_weight, _ = weights.qkv_weight.unflatten(0, (3, weights.heads, -1))
    query_bias = weights.qkv_bias.unflatten(0, (3, weights.heads, -1))[0]
    normalized = normalize(cls_token, weights.eps, key_weight.dtype)
    query = linear(normalized, query_weight.flatten(0, 1), query_bias.flatten())
    query = torch.bmm(query.unflatten(1, (weights.heads, -1)).transpose(0, 1), key_weight)
    return normalized, query.transpose(0, 1)


def project_attended(attended: Tensor, weights: Direct) -> Tensor:
    """Take attended normalized tokens forward through the value and the output weights.

    Args:
        attended: `(batch, rows, heads, dim)`.
        weights: folded projections.

    Returns:
        The attention's output `(batch, rows, dim)`.
    """
    value_weight = weights.qkv_weight.unflatten(0, (3, weights.heads, -1))[2]
    value_bias = weights.qkv_bias.unflatten(0, (3, weights.heads, -1))[2]
    per_head = attended.flatten(0, 1).transpose(0, 1)
    value = torch.baddbmm(value_bias.unsqueeze(1), per_head, value_weight.transpose(1, 2)).transpose(0, 1)
    value = value.flatten(1).unflatten(0, attended.shape[:2])
    return value if weights.out_weight is None else linear(value, weights.out_weight, weights.out_bias)
