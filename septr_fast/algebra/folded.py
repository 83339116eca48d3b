"""Folded weights: what travels from the algebra to the passes, one class for each form of the attention, and the MLP.

Notation, here and in the files beside, for one pre-norm transformer with `heads` heads of width `dim_head` over tokens
of width `dim`. `x̂ = (x - mean(x)) / sqrt(var(x) + eps)` is a token normalized without its affine part, so LayerNorm
gives `x̂ γ + β` (elementwise). Per head, `W_q`, `W_k`, `W_v` are `(dim_head, dim)`, `W_o` is `(dim, dim_head)`, and
`s = dim_head ** -0.5`.

All of it is computed in float32 at least and rounded once to the dtype in which it will be used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from septr_fast.algebra import older_torch


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


Tables = TypeVar("Tables", Direct, Merged, LowRank, Mlp)


def to_dtype(tables: Tables, dtype: torch.dtype) -> Tables:
    """`tables`, whose tensors share a dtype, with all of them in `dtype`; differentiable."""
    tensors = tensors_of(tables)
    if all(x.dtype == dtype for x in tensors.values()):
        return tables
    changed: dict[str, Any] = {name: x.to(dtype) for name, x in tensors.items()}
    return older_torch.replace(tables, **changed)


def tensors_of(tables: Direct | Merged | LowRank | Mlp) -> dict[str, Tensor]:
    """The tensors of `tables` by name."""
    values = {field.name: getattr(tables, field.name) for field in fields(tables)}
    return {name: x for name, x in values.items() if isinstance(x, Tensor)}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of `dtype` are combined: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Folded(NamedTuple):
    """The folded weights of one transformer.

    Attributes:
        attention: in the form that its formulation takes.
        mlp: of its second sublayer.
    """

    attention: Direct | Merged | LowRank
    mlp: Mlp
