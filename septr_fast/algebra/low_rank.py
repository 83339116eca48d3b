"""Low-rank: the model's first transformer as tables over its pixels.

Its tokens are `t_i = s_i A + c_i`, with `s_i` the `channels` values of a pixel, `A` the projection weight and `c_i`
bias plus position (for the class token: `s = 0` and its own `c`). Normalization is linear up to the factor
`r_i = 1 / σ_i`, and with `Ā`, `c̄_i` centred over `dim`, `σ_i² = mean((s_i Ā + c̄_i)²) + eps` is a quadratic polynomial
in `s_i`. Queries, keys and values of the rows of `Ā` and `c̄` fix every score and every output: see `LowRank` in
`septr_fast.algebra.folded`, where the notation is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from septr_fast.algebra.folded import LowRank
from septr_fast.algebra.reading import folded_out_bias, read_attention, weight_of
from septr_fast.reference import Transformer


def fold_low_rank(transformer: Transformer, projection: nn.Linear, cls_token: Tensor, pos_embedding: Tensor) -> LowRank:
    """Precompute the first transformer on tokens `s_i A + c_i`.

    Args:
        transformer: the model's first transformer.
        projection: `Linear(channels, dim)` from pixel to token.
        cls_token: `(dim,)`.
        pos_embedding: `(tokens, dim)`, the class token's position first.
    """
    weights = read_attention(transformer)
    dtype, heads = weights.gamma.dtype, weights.heads
    pixel, positions = weight_of(projection).to(dtype).T, pos_embedding.to(dtype)
    constant = positions + torch.cat(
        [cls_token.to(dtype).unsqueeze(0), projection.bias.to(dtype).expand(len(positions) - 1, -1)]
    )
    channels, dim = pixel.shape
    basis = torch.cat([pixel, constant])
    basis = basis - basis.mean(dim=1, keepdim=True)
    gram = basis @ basis.T / dim

    scaled = basis * weights.gamma
    query, key, value = (
        (scaled @ weight.T).unflatten(1, (heads, weights.dim_head)).transpose(0, 1)
        for weight in (weights.query, weights.key, weights.value)
    )
    scores = torch.bmm(query, key.transpose(1, 2))
    bias = torch.bmm(key, weights.per_head(weights.query @ weights.beta).unsqueeze(2)).squeeze(2)
    if weights.out_weight is not None:
        out = weights.out_weight.unflatten(1, (heads, weights.dim_head)).permute(1, 2, 0)
        value = torch.bmm(value, out)
    return LowRank(
        heads=heads,
        token_weight=pixel.T,
        token_bias=constant,
        gram=gram[:channels, :channels],
        cross=2 * gram[channels:, :channels],
        square=gram.diagonal()[channels:] + weights.eps,
        pixel_pixel=scores[:, :channels, :channels].transpose(0, 1).flatten(1),
        position_pixel=scores[:, channels:, :channels].transpose(0, 1),
        pixel_bias=bias[:, :channels].flatten(),
        pixel_position=scores[:, :channels, channels:].transpose(0, 1).flatten(1),
        position_position=scores[:, channels:, channels:].transpose(0, 1),
        position_bias=bias[:, channels:].flatten(),
        position_values=value[:, channels:].flatten(0, 1).T,
        pixel_values=value[:, :channels].flatten(0, 1).T,
        out_bias=folded_out_bias(weights),
    )
