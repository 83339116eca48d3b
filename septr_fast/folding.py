"""Weights merged and folded: the exact algebra that `SepTr` runs on, as plain tensor functions.

Notation, for one pre-norm transformer with `heads` heads of width `dim_head` over tokens of width
`dim`. `x̂ = (x - mean(x)) / sqrt(var(x) + eps)` is a token normalized without its affine part, so
LayerNorm gives `x̂ γ + β` (elementwise). Per head, `W_q`, `W_k`, `W_v` are `(dim_head, dim)`, `W_o` is
`(dim, dim_head)`, and `s = dim_head ** -0.5`.

**Direct.** The affine part moves into the projection: `(x̂ γ + β) Wᵀ = x̂ (W γ)ᵀ + W β`. The scale `s`
moves into the query rows.

**Merged.** The scores of head h are `(x̂_i γ + β) M (γ x̂_j + β)ᵀ` with the QK circuit `M = s W_qᵀ W_k`.
Expanded, the terms without `x̂_j` are constant over the keys and cancel in the softmax; left are
`x̂_i (γ M γ) x̂_jᵀ + ((β M) γ) x̂_jᵀ`: a projection of the query token, with a bias, against the
normalized token itself. With the OV circuit `N = (W_o W_v)ᵀ` the output is
`Σ_h P_h (x̂ γ + β) N_h = Σ_h (P_h x̂) (γ N_h) + Σ_h β N_h`, because the rows of `P_h` sum to one. Keys and
values of every head are `x̂`: multi-query attention with one tensor for both.

**Low-rank.** The tokens of the model's first transformer are `t_i = s_i A + c_i`, with `s_i` the
`channels` values of a pixel, `A` the projection weight and `c_i` bias plus position (for the class
token: `s = 0` and its own `c`). Normalization is linear up to the factor `r_i = 1 / σ_i`, and with
`Ā`, `c̄_i` centred over `dim`, `σ_i² = mean((s_i Ā + c̄_i)²) + eps` is a quadratic polynomial in `s_i`.
Queries, keys and values of the rows of `Ā` and `c̄` fix every score and every output: see `LowRank`.

**MLP.** `W_1 (x̂ γ + β) + b_1 = (W_1 γ) x̂ + (W_1 β + b_1)`.

All of it is computed in float32 at least and rounded once to the dtype in which it will be used.
References: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), for the QK and OV
circuits; Shazeer, "Fast Transformer Decoding" (2019), for multi-query attention.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar
from typing import cast as cast_type

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from septr_fast.reference import Attention, FeedForward, Transformer


@dataclass(frozen=True)
class Direct:
    """Projections with the LayerNorm and the scale folded in.

    Attributes:
        heads: number of heads.
        eps: added to the variance of a token.
        qkv_weight: `(3 * heads * dim_head, dim)`, queries, keys, values, each heads-outermost.
        qkv_bias: `(3 * heads * dim_head,)`.
        out_weight: `(dim, heads * dim_head)`, or None where the original has no output projection.
        out_bias: `(dim,)`, or None likewise.
    """

    heads: int
    eps: float
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor | None
    out_bias: Tensor | None


@dataclass(frozen=True)
class Merged:
    """QK and OV circuits; keys and values are the normalized tokens.

    Attributes:
        heads: number of heads.
        eps: added to the variance of a token.
        query_weight: `(heads * dim, dim)`: normalized token to what is compared with the keys.
        query_bias: `(heads * dim,)`.
        out_weight: `(dim, heads * dim)`: attended tokens of all heads to the output.
        out_bias: `(dim,)`.
    """

    heads: int
    eps: float
    query_weight: Tensor
    query_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


@dataclass(frozen=True)
class LowRank:
    """Tables of the first transformer; `tokens` = length + 1, the class token in front.

    With `u_i = r_i s_i` the score of head h is
    `(u_i E + r_i G_i + e) · u_j + r_j (u_i · F_j + r_i T_ij + f_j)`,
    and the output `Σ_h (Σ_j P_hij r_j) c̄_j N_h + (Σ_j P_hij u_j) Ā N_h`, plus the bias.

    Attributes:
        heads: number of heads.
        token_weight: `(dim, channels)`, the projection weight `Aᵀ`.
        token_bias: `(tokens, dim)`, the `c_i`.
        gram: `(channels, channels)`, `Ā Āᵀ / dim`.
        cross: `(tokens, channels)`, `2 c̄ Āᵀ / dim`.
        square: `(tokens,)`, `mean(c̄²) + eps`.
        pixel_pixel: `(channels, heads * channels)`, E.
        position_pixel: `(tokens, heads, channels)`, G.
        pixel_bias: `(heads * channels,)`, e.
        pixel_position: `(channels, heads * tokens)`, F.
        position_position: `(tokens, heads, tokens)`, T.
        position_bias: `(heads * tokens,)`, f.
        position_values: `(dim, heads * tokens)`, `c̄ N` transposed, the heads side by side.
        pixel_values: `(dim, heads * channels)`, `Ā N` transposed, the heads side by side.
        out_bias: `(dim,)`.
    """

    heads: int
    token_weight: Tensor
    token_bias: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    pixel_pixel: Tensor
    position_pixel: Tensor
    pixel_bias: Tensor
    pixel_position: Tensor
    position_position: Tensor
    position_bias: Tensor
    position_values: Tensor
    pixel_values: Tensor
    out_bias: Tensor


@dataclass(frozen=True)
class Dropout:
    """Probabilities of dropping an output, each 0 where its module is in evaluation.

    Attributes:
        attention: of the attention's output projection.
        hidden: of the MLP's first layer.
        out: of the MLP's second layer.
    """

    attention: float = 0.0
    hidden: float = 0.0
    out: float = 0.0


NO_DROPOUT = Dropout()


@dataclass(frozen=True)
class Mlp:
    """The MLP with its LayerNorm folded into the first layer.

    Attributes:
        eps: added to the variance of a token.
        hidden_weight: `(mlp_dim, dim)`.
        hidden_bias: `(mlp_dim,)`.
        out_weight: `(dim, mlp_dim)`.
        out_bias: `(dim,)`.
    """

    eps: float
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


Tables = TypeVar("Tables", Direct, Merged, LowRank, Mlp)


def cast(tables: Tables, dtype: torch.dtype) -> Tables:
    """`tables` with every tensor in `dtype`; differentiable."""
    changed: dict[str, Any] = {name: x.to(dtype) for name, x in tensors(tables).items()}
    return replace(tables, **changed)


def tensors(tables: Direct | Merged | LowRank | Mlp) -> dict[str, Tensor]:
    """The tensors of `tables` by name."""
    values = {field.name: getattr(tables, field.name) for field in fields(tables)}
    return {name: x for name, x in values.items() if isinstance(x, Tensor)}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of `dtype` are combined: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(transformer: Transformer) -> None:
    """Raise `TypeError` where a module that is read as a weight is not what it was built as.

    An adapter, a quantized layer or another activation in its place would have no effect.
    """
    attention, feed_forward = (sublayer.fn for sublayer in transformer.sublayers)
    _expect(attention, Attention, "attention")
    _expect(feed_forward, FeedForward, "MLP")
    net = cast_type(FeedForward, feed_forward).net
    _expect(cast_type(Attention, attention).to_qkv, nn.Linear, "to_qkv")
    to_out = cast_type(Attention, attention).to_out
    if not isinstance(to_out, nn.Identity):
        _expect(to_out[0], nn.Linear, "to_out.0")
        _expect(to_out[1], nn.Dropout, "to_out.1")
    for index, kind in enumerate((nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.Dropout)):
        _expect(net[index], kind, f"net.{index}")
    if cast_type(nn.GELU, net[1]).approximate != "none":
        raise TypeError("net.1: expected the exact GELU, got the approximation by tanh")
    for sublayer in transformer.sublayers:
        _expect(sublayer.norm, nn.LayerNorm, "norm")


def _expect(module: nn.Module, kind: type[nn.Module], name: str) -> None:
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise TypeError(
            f"{name}: expected {kind.__name__}, whose parameters are folded with others, got {type(module).__name__}"
        )


def _weight(linear: nn.Linear) -> Tensor:
    """The weight that `linear` would use: pruning and norms by hooks set it only when the module is called."""
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm)):
            hook(linear, None)
    return linear.weight


@dataclass(frozen=True)
class _Attention:
    """The parameters of one attention sublayer in the accumulation dtype, the scale in the queries."""

    heads: int
    dim_head: int
    eps: float
    gamma: Tensor
    beta: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out_weight: Tensor | None
    out_bias: Tensor | None

    def per_head(self, weight: Tensor) -> Tensor:
        """View rows `(heads * dim_head, ...)` as `(heads, dim_head, ...)`."""
        return weight.unflatten(0, (self.heads, self.dim_head))


def _read_attention(transformer: Transformer) -> _Attention:
    sublayer = transformer.sublayers[0]
    norm, attention = sublayer.norm, cast_type(Attention, sublayer.fn)
    dtype = accumulation_dtype(norm.weight.dtype)
    query, key, value = _weight(attention.to_qkv).to(dtype).chunk(3)
    out = None if isinstance(attention.to_out, nn.Identity) else cast_type(nn.Linear, attention.to_out[0])
    return _Attention(
        heads=attention.heads,
        dim_head=attention.dim_head,
        eps=norm.eps,
        gamma=norm.weight.to(dtype),
        beta=norm.bias.to(dtype),
        query=query * attention.dim_head**-0.5,
        key=key,
        value=value,
        out_weight=None if out is None else _weight(out).to(dtype),
        out_bias=None if out is None else out.bias.to(dtype),
    )


def _folded_out_bias(weights: _Attention) -> Tensor:
    """`b_o + W_o W_v β`: what the output holds whatever is attended to, `(dim,)`."""
    value_bias = weights.value @ weights.beta
    if weights.out_weight is None or weights.out_bias is None:
        return value_bias
    return torch.addmv(weights.out_bias, weights.out_weight, value_bias)


def fold_direct(transformer: Transformer) -> Direct:
    """Fold the attention sublayer of `transformer` for separate queries, keys and values."""
    weights = _read_attention(transformer)
    qkv = torch.cat([weights.query, weights.key, weights.value])
    return Direct(
        heads=weights.heads,
        eps=weights.eps,
        qkv_weight=qkv * weights.gamma,
        qkv_bias=qkv @ weights.beta,
        out_weight=weights.out_weight,
        out_bias=weights.out_bias,
    )


def fold_merged(transformer: Transformer) -> Merged:
    """Merge the QK and OV circuits of the attention sublayer of `transformer`."""
    weights = _read_attention(transformer)
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
        out_bias=_folded_out_bias(weights),
    )


def fold_low_rank(transformer: Transformer, projection: nn.Linear, cls_token: Tensor, pos_embedding: Tensor) -> LowRank:
    """Precompute the first transformer on tokens `s_i A + c_i`.

    Args:
        transformer: the model's first transformer.
        projection: `Linear(channels, dim)` from pixel to token.
        cls_token: `(dim,)`.
        pos_embedding: `(tokens, dim)`, the class token's position first.
    """
    weights = _read_attention(transformer)
    dtype, heads = weights.gamma.dtype, weights.heads
    _expect(projection, nn.Linear, "projection")
    pixel, positions = _weight(projection).to(dtype).T, pos_embedding.to(dtype)
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
        out_bias=_folded_out_bias(weights),
    )


def read_dropout(transformer: Transformer) -> Dropout:
    """The probabilities that the dropout modules of `transformer` hold, as each is set at this moment."""
    attention, feed_forward = (sublayer.fn for sublayer in transformer.sublayers)
    to_out, net = cast_type(Attention, attention).to_out, cast_type(FeedForward, feed_forward).net
    modules = (to_out if isinstance(to_out, nn.Identity) else to_out[1], net[2], net[4])
    return Dropout(*(module.p if isinstance(module, nn.Dropout) and module.training else 0.0 for module in modules))


def fold_mlp(transformer: Transformer) -> Mlp:
    """Fold the LayerNorm of the MLP sublayer of `transformer` into its first layer."""
    sublayer = transformer.sublayers[1]
    norm, net = sublayer.norm, cast_type(FeedForward, sublayer.fn).net
    hidden, out = cast_type(nn.Linear, net[0]), cast_type(nn.Linear, net[3])
    dtype = accumulation_dtype(norm.weight.dtype)
    weight = _weight(hidden).to(dtype)
    return Mlp(
        eps=norm.eps,
        hidden_weight=weight * norm.weight.to(dtype),
        hidden_bias=torch.addmv(hidden.bias.to(dtype), weight, norm.bias.to(dtype)),
        out_weight=_weight(out).to(dtype),
        out_bias=out.bias.to(dtype),
    )
