"""Attention along one axis with both of its projections in one kernel, for the merged form.

For a tile of tokens i of one sequence, x̂ its normalized tokens and x̂_0 the class token:

    q′ = x̂_i M_h + b_h,   s_j = q′ · x̂_j,   P = softmax over j = 0 … L,   branch_i = Σ_h (Σ_j P_j x̂_j) N_h + b.

Neither q′ nor the attended tokens reach memory. Features are walked in slices of `BLOCK_C`, the products are
summed over them, and roundings are those of the separate kernels. All scores of a tile stay on chip, so the
length is limited to `MOST_KEYS`. The class token's own queries, one for each sequence, take the separate way.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .attention import LOG2E, load_tile, load_vector, store_tile
from .rounding import dot, sum_of_products

MOST_KEYS = 128


@triton.jit
def fused_attention_fwd_kernel(
    hat_ptr,
    cls_hat_ptr,
    query_weight_ptr,
    query_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    branch_ptr,
    hat_strides,
    cls_hat_strides,
    query_weight_strides,
    query_bias_strides,
    out_weight_strides,
    out_bias_strides,
    branch_strides,
    rows,
    HEADS: tl.constexpr,
    LENGTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: the branch of `BLOCK_Q` tokens of one sequence, all heads.

    Strides are `(batch, row, token, dim)` of x̂ and the branch, `(batch, dim)` of the class token, `(out, in)`
    of weights.
    """
    TILES: tl.constexpr = (LENGTH + BLOCK_Q - 1) // BLOCK_Q
    EVEN_Q: tl.constexpr = LENGTH % BLOCK_Q == 0 and DIM == BLOCK_D
    EVEN_K: tl.constexpr = LENGTH == BLOCK_K and DIM == BLOCK_D
    dtype: tl.constexpr = hat_ptr.dtype.element_ty
    pid = tl.program_id(0)
    tile, sequence = pid % TILES, pid // TILES
    batch, row = (sequence // rows).to(tl.int64), (sequence % rows).to(tl.int64)
    hat_ptr += batch * hat_strides[0] + row * hat_strides[1]
    branch_ptr += batch * branch_strides[0] + row * branch_strides[1]
    cls_hat_ptr += batch * cls_hat_strides[0]

    offs_q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_k = tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    # (BLOCK_Q, BLOCK_D)
    tokens = load_tile(hat_ptr, offs_q, offs_d, hat_strides[2], hat_strides[3], LENGTH, DIM, EVEN_Q)
    branch = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for head in range(0, HEADS):
        # (BLOCK_Q, BLOCK_K), (BLOCK_Q,)
        scores = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        cls_scores = tl.zeros((BLOCK_Q,), tl.float32)
        for start in range(0, BLOCK_D, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            offs_feature = tl.where(offs_c < DIM, head * DIM + offs_c, HEADS * DIM)
            # (BLOCK_C, BLOCK_D)
            weight = load_tile(
                query_weight_ptr,
                offs_feature,
                offs_d,
                query_weight_strides[0],
                query_weight_strides[1],
                HEADS * DIM,
                DIM,
                DIM == BLOCK_D,
            )
            bias = load_vector(query_bias_ptr, offs_feature, query_bias_strides[0], HEADS * DIM, 0.0)
            # (BLOCK_Q, BLOCK_C)
            query = dot(tokens, tl.trans(weight)) + bias[None, :]
            query = query.to(dtype)
            # (BLOCK_K, BLOCK_C)
            keys = load_tile(hat_ptr, offs_k, offs_c, hat_strides[2], hat_strides[3], LENGTH, DIM, EVEN_K)
            scores = dot(query, tl.trans(keys), scores)
            cls_key = load_vector(cls_hat_ptr, offs_c, cls_hat_strides[1], DIM, 0.0)
            cls_scores += sum_of_products(query.to(tl.float32), cls_key[None, :], 1)
        if LENGTH != BLOCK_K:
            scores = tl.where((offs_k < LENGTH)[None, :], scores, float("-inf"))
        # (BLOCK_Q,)
        largest = tl.maximum(tl.max(scores, 1), cls_scores)
        p = tl.exp2((scores - largest[:, None]) * LOG2E)
        cls_p = tl.exp2((cls_scores - largest) * LOG2E)
        total = tl.sum(p, 1) + cls_p
        share = 1.0 / total
        p = (p * share[:, None]).to(dtype)
        cls_p *= share
        for start in range(0, BLOCK_D, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            offs_feature = tl.where(offs_c < DIM, head * DIM + offs_c, HEADS * DIM)
            # (BLOCK_K, BLOCK_C)
            values = load_tile(hat_ptr, offs_k, offs_c, hat_strides[2], hat_strides[3], LENGTH, DIM, EVEN_K)
            cls_value = load_vector(cls_hat_ptr, offs_c, cls_hat_strides[1], DIM, 0.0)
            # (BLOCK_Q, BLOCK_C)
            attended = dot(p, values, cls_p[:, None] * cls_value[None, :])
            # (BLOCK_D, BLOCK_C)
            weight = load_tile(
                out_weight_ptr,
                offs_d,
                offs_feature,
                out_weight_strides[0],
                out_weight_strides[1],
                DIM,
                HEADS * DIM,
                DIM == BLOCK_D,
            )
            branch = dot(attended.to(dtype), tl.trans(weight), branch)
    branch += load_vector(out_bias_ptr, offs_d, out_bias_strides[0], DIM, 0.0)[None, :]
    store_tile(branch_ptr, branch, offs_q, offs_d, branch_strides[2], branch_strides[3], LENGTH, DIM, EVEN_Q)


def serves(hat: Tensor) -> bool:
    """Whether the table prefers this form for tokens `(batch, rows, length, dim)`, and it can take them."""
    return hat.shape[2] <= MOST_KEYS and bool(
        launch.choose("attention_form", hat.device, hat.dtype, hat.shape[3]).tiles["FUSED"]
    )


def attend_and_project(
    hat: Tensor,
    cls_hat: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    heads: int,
    branch: Tensor,
) -> None:
    """Write what the attention adds to the grid tokens.

    Args:
        hat: `(batch, rows, length, dim)`, normalized tokens, `length` up to `MOST_KEYS`; any strides.
        cls_hat: `(batch, dim)`, the class token normalized.
        query_weight: `(heads * dim, dim)`.
        query_bias: `(heads * dim,)`.
        out_weight: `(dim, heads * dim)`.
        out_bias: `(dim,)`.
        heads: number of heads.
        branch: written, `(batch, rows, length, dim)`, any strides.
    """
    batch, rows, length, dim = hat.shape
    block_d, block_k = launch.feature_block(dim), launch.feature_block(length)
    config = launch.choose("fused_attention_fwd", hat.device, hat.dtype, block_d)
    config = launch.fit(config, BLOCK_Q=length, BLOCK_C=dim)
    operands = {
        "hat": hat,
        "cls_hat": cls_hat,
        "query_weight": query_weight,
        "query_bias": query_bias,
        "out_weight": out_weight,
        "out_bias": out_bias,
        "branch": branch,
    }
    arguments: dict[str, Any] = {f"{name}_ptr": tensor for name, tensor in operands.items()}
    arguments |= {f"{name}_strides": tensor.stride() for name, tensor in operands.items()}
    arguments |= {"rows": rows, "HEADS": heads, "LENGTH": length, "DIM": dim, "BLOCK_D": block_d, "BLOCK_K": block_k}
    tiles = launch.ceil_div(length, config.tiles["BLOCK_Q"])
    padded = tiles * config.tiles["BLOCK_Q"]
    launch.launch(
        "fused_attention_fwd",
        fused_attention_fwd_kernel,
        batch * rows * tiles,
        config,
        arguments,
        device=hat.device,
        flops=4 * batch * rows * heads * length * dim * (dim + length),
        executed_flops=4 * batch * rows * heads * padded * block_d * (block_d + block_k),
    )
