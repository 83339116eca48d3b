"""The attention of each formulation over the rows of one chunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from septr_fast.algebra.folded import Direct, LowRank, Merged
from septr_fast.passes.inputs import place
from septr_fast.passes.lengths import within
from septr_fast.passes.sublayers import class_query, normalize, project_attended
from septr_fast.passes.torch.linear import add_linear, linear

STREAMED_TOKENS = 1024
"""Most tokens whose scores are kept as a whole."""


def attention_sublayer(x: Tensor, weights: Direct | Merged, padding: Tensor | None, dropout: float) -> Tensor:
    """Tokens `(rows, tokens, dim)` and their attention in the form of its weights; in the place of `x`.

    `padding` `(rows, tokens)` tells which tokens are keys to nobody.
    """
    if isinstance(weights, Merged):
        attended = merged_attention(x, weights, padding)
    else:
        attended = direct_attention(x, weights, padding)
    if weights.out_weight is None:
        return x + F.dropout(attended, dropout)
    return add_linear(x, attended, weights.out_weight, weights.out_bias, dropout)


def direct_attention(x: Tensor, weights: Direct, padding: Tensor | None = None) -> Tensor:
    """What `x` `(rows, tokens, dim)` attends to, with separate queries, keys and values: `(rows, tokens, inner)`."""
    qkv = linear(normalize(x, weights.eps, weights.qkv_weight.dtype), weights.qkv_weight, weights.qkv_bias)
    query, key, value = qkv.unflatten(2, (3, weights.heads, -1)).permute(2, 0, 3, 1, 4)
    return _attend(query, key, value, padding).transpose(1, 2).flatten(2)


def merged_attention(x: Tensor, weights: Merged, padding: Tensor | None = None) -> Tensor:
    """What `x` `(rows, tokens, dim)` attends to, by QK and OV circuits: `(rows, tokens, heads * dim)`.

    The heads of a token stand next to one another, so that all heads share one product with the keys.
    """
    rows, tokens, dim = x.shape
    normalized = normalize(x, weights.eps, weights.query_weight.dtype)
    query = linear(normalized, weights.query_weight, weights.query_bias).view(rows, 1, tokens * weights.heads, dim)
    normalized = normalized.unsqueeze(1)
    return _attend(query, normalized, normalized, padding).view(rows, tokens, weights.heads * dim)


def low_rank_attention(s: Tensor, weights: LowRank, dtype: torch.dtype, padding: Tensor | None = None) -> Tensor:
    """Attention of the tokens that pixels `s` `(rows, tokens, channels)` stand for; `(rows, tokens, dim)` out.

    Statistics and scores are computed in the dtype of `s`, the values in `dtype`. `padding` `(rows, tokens)`
    tells which tokens are keys to nobody.
    """
    rows, tokens, channels = s.shape
    heads = weights.heads
    variance = ((s @ weights.gram + weights.cross) * s).sum(-1) + weights.square
    r = variance.rsqrt().unsqueeze(-1)
    u = s * r
    flat = u.flatten(0, 1)
    query = torch.addmm(weights.pixel_bias, flat, weights.pixel_pixel).view(rows, tokens, heads, channels)
    query = torch.addcmul(query, r.unsqueeze(-1), weights.position_pixel, out=place(query))
    table = torch.addmm(weights.position_bias, flat, weights.pixel_position).view(rows, tokens, heads, tokens)
    table = torch.addcmul(table, r.unsqueeze(-1), weights.position_position, out=place(table))
    table = torch.mul(table, r.view(rows, 1, 1, tokens), out=place(table)).view(rows, tokens * heads, tokens)
    query = query.view(rows, tokens * heads, channels)
    scores = torch.baddbmm(table, query, u.transpose(1, 2), out=place(table))
    if padding is not None:
        scores = scores.masked_fill(padding.unsqueeze(1), float("-inf"))
    probability = torch.softmax(scores, -1, out=place(scores))
    from_pixels = torch.bmm(probability, u).view(rows * tokens, heads * channels)
    from_positions = torch.mul(probability, r.view(rows, 1, tokens), out=place(probability))
    from_positions = from_positions.view(rows * tokens, heads * tokens).to(dtype)
    out = linear(from_positions, weights.position_values.to(dtype), weights.out_bias.to(dtype))
    return add_linear(out, from_pixels.to(dtype), weights.pixel_values.to(dtype), None).unflatten(0, (rows, tokens))


def class_only_attention(body: Tensor, cls_token: Tensor, weights: Direct, valid: Tensor | None = None) -> Tensor:
    """What the class token of each row attends to.

    Args:
        body: grid tokens `(batch, rows, length, dim)`, positions added.
        cls_token: `(batch, dim)`, position added.
        weights: folded projections.
        valid: `(batch,)`, how many tokens of a row are keys; None for all.

    Returns:
        The attention's output for the class token, `(batch, rows, dim)`. Keys and values are never projected.
    """
    rows = body.shape[1]
    normalized_cls, query = class_query(cls_token, weights)
    normalized = normalize(body, weights.eps, query.dtype)
    cls_scores = torch.bmm(query, normalized_cls.unsqueeze(2)).unsqueeze(1).expand(-1, rows, -1, -1)
    scores = torch.matmul(query.unsqueeze(1), normalized.transpose(2, 3))
    if valid is not None:
        scores = scores.masked_fill(~within(valid, body.shape[2])[:, None, None], float("-inf"))
    probability = torch.cat([cls_scores, scores], dim=-1).softmax(dim=-1)
    attended = torch.matmul(probability[..., 1:], normalized)
    return project_attended(attended + probability[..., :1] * normalized_cls[:, None, None], weights)


def _attend(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
    """softmax(query keyᵀ) value over `(rows, heads, tokens, dim)`, the scale already in the query.

    `padding` `(rows, tokens)` tells which tokens are keys to nobody.
    """
    if query.is_cuda or key.shape[2] > STREAMED_TOKENS:
        mask = None if padding is None else ~padding[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    heads = query.shape[:2]
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2))
    if padding is not None:
        scores = scores.masked_fill(padding.repeat_interleave(heads[1], 0).unsqueeze(1), float("-inf"))
    probability = torch.softmax(scores, -1, out=place(scores))
    return torch.bmm(probability, value, out=place(query)).unflatten(0, heads)
