"""The backward pass of the first transformer's attention; the maths are in `low_rank_kernels`.

Gradients leave the programs as parts that are summed up afterwards: those of r and u one part for every block
of keys (as queries) and of queries (as keys), with the class token's key as a block of its own; those of the
tables one part for each of a few parts of the sequences.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .low_rank import (
    ScoreTables,
    TokenFactors,
    channel_block,
    for_class_query,
    multiply,
    score_arguments,
    with_class_token,
)
from .low_rank_kernels import class_key_weights, load_vector, score_terms, tile_ptrs

LARGEST_PARTS = 1 << 24
"""Values in all parts of the gradient of a table, unless a single one has more."""


@triton.jit
def low_rank_bwd_class_key_kernel(
    r_ptr,
    u_ptr,
    query_ptr,
    slope_ptr,
    table_ptr,
    cls_table_ptr,
    bias_ptr,
    highest_ptr,
    total_ptr,
    grad_ptr,
    delta_ptr,
    factor_parts_ptr,
    table_parts_ptr,
    slope_parts_ptr,
    r_strides,
    u_strides,
    query_strides,
    slope_strides,
    table_strides,
    cls_table_strides,
    bias_strides,
    grad_strides,
    sequences,
    length,
    heads,
    first,
    queries,
    blocks,
    key_blocks,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program: Δ of `BLOCK_Q` queries of one head, and the class token's key, in one of `PARTS` parts."""
    index = tl.program_id(0)
    block, head, part = index % blocks, index // blocks % heads, index // (blocks * heads)
    tokens = length + 1
    offs_q = first + block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    mask_q = offs_q < first + queries
    offs_c = tl.arange(0, BLOCK_C)
    table_ptr += head * table_strides[1]
    bias_ptr += head * bias_strides[0]
    slope_ptr += head * slope_strides[1]
    query_ptr += head * query_strides[2]
    # (BLOCK_Q,)
    cls_table = load_vector(cls_table_ptr + head * cls_table_strides[1], offs_q, cls_table_strides[0], mask_q)
    grad_table = tl.zeros((BLOCK_Q,), tl.float32)
    cls_bias = tl.load(bias_ptr)
    grad_bias = 0.0
    # (BLOCK_C,)
    grad_slope = tl.zeros((BLOCK_C,), tl.float32)
    size = tl.cdiv(sequences, PARTS)
    for step in range(tl.minimum(size, sequences - part * size)):
        sequence = (part * size + step).to(tl.int64)
        r_row, u_row = r_ptr + sequence * r_strides[0], u_ptr + sequence * u_strides[0]
        query_row = query_ptr + sequence * query_strides[0]
        grad_rows = grad_ptr + sequence * queries * grad_strides[0]
        offs_row = (offs_q - first).to(tl.int64) * grad_strides[0]
        pixel_grads = grad_rows + (heads * tokens + head * CHANNELS).to(tl.int64) * grad_strides[1]
        offs_statistics = (sequence * heads + head) * tokens
        # (BLOCK_Q,)
        r_q = load_vector(r_row, offs_q, r_strides[1], mask_q)
        highest = load_vector(highest_ptr + offs_statistics, offs_q, 1, mask_q)
        total = tl.load(total_ptr + offs_statistics + offs_q, mask=mask_q, other=1.0)
        r_cls = tl.load(r_row)
        cls_weights = class_key_weights(
            cls_table,
            cls_bias,
            r_q,
            u_row,
            slope_ptr,
            offs_q,
            u_strides[1],
            u_strides[2],
            slope_strides[0],
            mask_q,
            CHANNELS,
        )
        cls_probability = tl.where(mask_q, tl.exp(r_cls * cls_weights - highest) / total, 0.0)
        column = (heads * length + head).to(tl.int64)
        cls_grad = load_vector(grad_rows + column * grad_strides[1], offs_row, 1, mask_q)
        delta = cls_probability * cls_grad * r_cls
        for start in range(0, length, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K)
            mask_k = offs_k < length
            mask = mask_q[:, None] & mask_k[None, :]
            table_ptrs = tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2])
            # (BLOCK_Q, BLOCK_K)
            table = tl.load(table_ptrs, mask=mask, other=0.0)
            bias = load_vector(bias_ptr + bias_strides[1], offs_k, bias_strides[1], mask_k)
            r_k = load_vector(r_row + r_strides[1], offs_k, r_strides[1], mask_k)
            contents, weights = score_terms(
                table,
                bias,
                r_q,
                u_row,
                query_row,
                slope_ptr,
                offs_q,
                offs_k,
                mask_q,
                mask_k,
                u_strides,
                query_strides,
                slope_strides,
                CHANNELS,
            )
            scores = tl.where(mask, contents + r_k[None, :] * weights - highest[:, None], float("-inf"))
            probability = tl.exp(scores) / total[:, None]
            offs_column = (head * length + offs_k).to(tl.int64) * grad_strides[1]
            grad = tl.load(grad_rows + offs_row[:, None] + offs_column[None, :], mask=mask, other=0.0).to(tl.float32)
            grad_probability = grad * r_k[None, :]
            for c in range(CHANNELS):
                u_k = load_vector(u_row + u_strides[1] + c * u_strides[2], offs_k, u_strides[1], mask_k)
                pixel_grad = load_vector(pixel_grads + c * grad_strides[1], offs_row, 1, mask_q)
                grad_probability += pixel_grad[:, None] * u_k[None, :]
            delta += tl.sum(probability * grad_probability, 1)
        tl.store(delta_ptr + offs_statistics + offs_q, delta, mask=mask_q)
        grad_scores = cls_probability * (cls_grad * r_cls - delta)
        grad_weights = grad_scores * r_cls
        grad_table += grad_weights * r_q
        grad_bias += tl.sum(grad_weights, 0)
        slot = ((key_blocks * heads + head) * sequences + sequence) * tokens
        query_parts = factor_parts_ptr + (slot + offs_q) * (1 + CHANNELS)
        tl.store(query_parts, grad_weights * cls_table, mask=mask_q)
        slot = (((key_blocks + 1 + first + block) * heads + head) * sequences + sequence) * tokens
        key_parts = factor_parts_ptr + slot * (1 + CHANNELS)
        tl.store(key_parts, tl.sum(cls_probability * cls_grad + grad_scores * cls_weights, 0))
        for c in range(CHANNELS):
            u_q = load_vector(u_row + c * u_strides[2], offs_q, u_strides[1], mask_q)
            grad_slope += tl.where(offs_c == c, tl.sum(grad_weights * u_q, 0), 0.0)
            tl.store(query_parts + 1 + c, grad_weights * tl.load(slope_ptr + c * slope_strides[0]), mask=mask_q)
            tl.store(key_parts + 1 + c, 0.0)
    table_parts_ptr += ((part * tokens + offs_q).to(tl.int64) * heads + head) * tokens
    tl.store(table_parts_ptr, grad_table, mask=mask_q)
    slope_parts_ptr += ((first + block) * PARTS + part).to(tl.int64) * heads * tokens * (1 + CHANNELS)
    slope_parts_ptr += head * tokens * (1 + CHANNELS)
    tl.store(slope_parts_ptr, grad_bias)
    tl.store(slope_parts_ptr + 1 + offs_c, grad_slope, mask=offs_c < CHANNELS)


@triton.jit
def low_rank_bwd_kernel(
    r_ptr,
    u_ptr,
    query_ptr,
    slope_ptr,
    table_ptr,
    bias_ptr,
    highest_ptr,
    total_ptr,
    grad_ptr,
    delta_ptr,
    factor_parts_ptr,
    query_parts_ptr,
    table_parts_ptr,
    slope_parts_ptr,
    r_strides,
    u_strides,
    query_strides,
    slope_strides,
    table_strides,
    bias_strides,
    grad_strides,
    sequences,
    length,
    heads,
    first,
    queries,
    blocks,
    key_blocks,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program: `BLOCK_Q` queries of one head and `BLOCK_K` keys in one of `PARTS` parts of the sequences."""
    index = tl.program_id(0)
    key_block, block = index % key_blocks, index // key_blocks % blocks
    index = index // (key_blocks * blocks)
    head, part = index % heads, index // heads
    tokens = length + 1
    offs_q = first + block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_k = key_block * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_c = tl.arange(0, BLOCK_C)
    mask_q = offs_q < first + queries
    mask_k = offs_k < length
    mask = mask_q[:, None] & mask_k[None, :]
    table_ptr += head * table_strides[1]
    bias_ptr += head * bias_strides[0]
    slope_ptr += head * slope_strides[1]
    query_ptr += head * query_strides[2]
    # (BLOCK_Q, BLOCK_K)
    table = tl.load(tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2]), mask=mask, other=0.0)
    grad_table = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    # (BLOCK_K,)
    bias = load_vector(bias_ptr + bias_strides[1], offs_k, bias_strides[1], mask_k)
    grad_bias = tl.zeros((BLOCK_K,), tl.float32)
    # (BLOCK_C, BLOCK_K)
    grad_slope = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    size = tl.cdiv(sequences, PARTS)
    for step in range(tl.minimum(size, sequences - part * size)):
        sequence = (part * size + step).to(tl.int64)
        r_row, u_row = r_ptr + sequence * r_strides[0], u_ptr + sequence * u_strides[0]
        query_row = query_ptr + sequence * query_strides[0]
        grad_rows = grad_ptr + sequence * queries * grad_strides[0]
        offs_row = (offs_q - first).to(tl.int64) * grad_strides[0]
        offs_column = (head * length + offs_k).to(tl.int64) * grad_strides[1]
        pixel_grads = grad_rows + (heads * tokens + head * CHANNELS).to(tl.int64) * grad_strides[1]
        offs_statistics = (sequence * heads + head) * tokens
        # (BLOCK_Q,)
        r_q = load_vector(r_row, offs_q, r_strides[1], mask_q)
        highest = load_vector(highest_ptr + offs_statistics, offs_q, 1, mask_q)
        total = tl.load(total_ptr + offs_statistics + offs_q, mask=mask_q, other=1.0)
        delta = load_vector(delta_ptr + offs_statistics, offs_q, 1, mask_q)
        # (BLOCK_K,)
        r_k = load_vector(r_row + r_strides[1], offs_k, r_strides[1], mask_k)
        # (BLOCK_Q, BLOCK_K)
        contents, weights = score_terms(
            table,
            bias,
            r_q,
            u_row,
            query_row,
            slope_ptr,
            offs_q,
            offs_k,
            mask_q,
            mask_k,
            u_strides,
            query_strides,
            slope_strides,
            CHANNELS,
        )
        scores = tl.where(mask, contents + r_k[None, :] * weights - highest[:, None], float("-inf"))
        probability = tl.exp(scores) / total[:, None]
        grad = tl.load(grad_rows + offs_row[:, None] + offs_column[None, :], mask=mask, other=0.0).to(tl.float32)
        grad_probability = grad * r_k[None, :]
        for c in range(CHANNELS):
            u_k = load_vector(u_row + u_strides[1] + c * u_strides[2], offs_k, u_strides[1], mask_k)
            pixel_grad = load_vector(pixel_grads + c * grad_strides[1], offs_row, 1, mask_q)
            grad_probability += pixel_grad[:, None] * u_k[None, :]
        grad_scores = probability * (grad_probability - delta[:, None])
        grad_weights = grad_scores * r_k[None, :]
        grad_table += grad_weights * r_q[:, None]
        grad_bias += tl.sum(grad_weights, 0)
        slot = ((key_block * heads + head) * sequences + sequence) * tokens
        query_parts = factor_parts_ptr + (slot + offs_q) * (1 + CHANNELS)
        tl.store(query_parts, tl.sum(grad_weights * table, 1), mask=mask_q)
        slot = (((key_blocks + 1 + first + block) * heads + head) * sequences + sequence) * tokens
        key_parts = factor_parts_ptr + (slot + 1 + offs_k) * (1 + CHANNELS)
        tl.store(key_parts, tl.sum(probability * grad + grad_scores * weights, 0), mask=mask_k)
        row = (key_block * sequences + sequence) * tokens + offs_q
        grad_query_ptrs = query_parts_ptr + (row * heads + head) * CHANNELS
        for c in range(CHANNELS):
            u_q = load_vector(u_row + c * u_strides[2], offs_q, u_strides[1], mask_q)
            u_k = load_vector(u_row + u_strides[1] + c * u_strides[2], offs_k, u_strides[1], mask_k)
            query = load_vector(query_row + c * query_strides[3], offs_q, query_strides[1], mask_q)
            slope = load_vector(slope_ptr + slope_strides[2] + c * slope_strides[0], offs_k, slope_strides[2], mask_k)
            pixel_grad = load_vector(pixel_grads + c * grad_strides[1], offs_row, 1, mask_q)
            share = tl.sum(grad_weights * u_q[:, None], 0)
            grad_slope += tl.where(offs_c[:, None] == c, share[None, :], 0.0)
            tl.store(query_parts + 1 + c, tl.sum(grad_weights * slope[None, :], 1), mask=mask_q)
            share = tl.sum(probability * pixel_grad[:, None] + grad_scores * query[:, None], 0)
            tl.store(key_parts + 1 + c, share, mask=mask_k)
            tl.store(grad_query_ptrs + c, tl.sum(grad_scores * u_k[None, :], 1), mask=mask_q)
    offs_table = ((part * tokens + offs_q).to(tl.int64) * heads + head) * tokens
    tl.store(table_parts_ptr + offs_table[:, None] + 1 + offs_k[None, :], grad_table, mask=mask)
    slope_parts_ptr += ((first + block) * PARTS + part).to(tl.int64) * heads * tokens * (1 + CHANNELS)
    slope_parts_ptr += (head * tokens + 1) * (1 + CHANNELS)
    tl.store(slope_parts_ptr + offs_k * (1 + CHANNELS), grad_bias, mask=mask_k)
    slope_ptrs = slope_parts_ptr + 1 + offs_c[:, None] + (offs_k * (1 + CHANNELS))[None, :]
    tl.store(slope_ptrs, grad_slope, mask=(offs_c < CHANNELS)[:, None] & mask_k[None, :])


def coefficients_backward(
    grad_body: Tensor, grad_front: Tensor, factors: TokenFactors, statistics: Tensor, tables: ScoreTables
) -> tuple[TokenFactors, Tensor, Tensor, Tensor]:
    """The gradients of `coefficients`, float32.

    Args:
        grad_body: `(sequences * length, columns)`, in any strides.
        grad_front: `(sequences, columns)`, in any strides.
        factors: of the tokens.
        statistics: `(2, sequences, heads, tokens)`, what `coefficients` gave.
        tables: as for `coefficients`.

    Returns:
        The gradients of the factors, and of `tables` those of `pixel_position`, `position_position` and
        `position_bias`. Those of several cuts along the sequences add up.

    Raises:
        LookupError: where no configuration serves so many channels.
    """
    sequences, tokens = factors.r.shape
    length, heads, features = tables.length, tables.heads, 1 + tables.channels
    chosen = launch.choose("low_rank_bwd", grad_body.device, grad_body.dtype, channel_block(tables))
    parts = max(1, min(chosen.tiles["PARTS"], LARGEST_PARTS // tables.position_position.numel()))
    for_grid = replace(chosen, tiles={**chosen.tiles, "PARTS": parts})
    key_blocks = launch.ceil_div(length, for_grid.tiles["BLOCK_K"])
    query_blocks = 1 + launch.ceil_div(length, for_grid.tiles["BLOCK_Q"])
    empty = factors.r.new_empty
    delta = empty(sequences, heads, tokens)
    factor_parts = empty(key_blocks + 1 + query_blocks, heads, sequences, tokens, features)
    query_parts = empty(key_blocks, sequences, tokens, heads, tables.channels)
    table_parts = empty(parts, tokens, heads, tokens)
    slope_parts = empty(query_blocks, parts, heads, tokens, features)
    for grad, first, config in ((grad_body, 1, for_grid), (grad_front, 0, for_class_query(for_grid))):
        blocks = query_blocks - 1 if first else 1
        arguments = score_arguments(factors, tables) | {
            "highest_ptr": statistics[0],
            "total_ptr": statistics[1],
            "grad_ptr": grad,
            "delta_ptr": delta,
            "factor_parts_ptr": factor_parts,
            "table_parts_ptr": table_parts,
            "slope_parts_ptr": slope_parts,
            "grad_strides": grad.stride(),
            "first": first,
            "queries": length if first else 1,
            "blocks": blocks,
            "key_blocks": key_blocks,
        }
        kernel, device = low_rank_bwd_class_key_kernel, grad.device
        launch.launch("low_rank_bwd_class_key", kernel, blocks * heads * parts, config, arguments, device=device)
        class_key = ("cls_table_ptr", "cls_table_strides")
        arguments = {name: value for name, value in arguments.items() if name not in class_key}
        arguments["query_parts_ptr"] = query_parts
        programs = key_blocks * blocks * heads * parts
        launch.launch("low_rank_bwd", low_rank_bwd_kernel, programs, config, arguments, device=device)
    grad_factors, grad_slope = factor_parts.sum((0, 1)), slope_parts.sum((0, 1))
    return (
        TokenFactors(grad_factors[..., 0], grad_factors[..., 1:], query_parts.sum(0)),
        grad_slope[..., 1:].permute(2, 0, 1).flatten(1),
        table_parts.sum(0),
        grad_slope[..., 0].flatten(),
    )


def token_factors_backward(
    grad: TokenFactors, pixels: Tensor, factors: TokenFactors, tables: ScoreTables, pixels_gradient: bool = True
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The gradients of `token_factors`.

    Args:
        grad: of the factors, float32.
        pixels: `(batch, rows, length, channels)`.
        factors: what `token_factors` gave.
        tables: as for `token_factors`.
        pixels_gradient: whether the gradient of `pixels` is asked for.

    Returns:
        The gradients of `gram`, `cross`, `square`, `pixel_pixel`, `position_pixel` and `pixel_bias` by name,
        float32, and that of `pixels` in its dtype, or None.
    """
    s, r, query = with_class_token(pixels), factors.r.unsqueeze(-1), grad.query.flatten(2)
    grad_u = grad.u + multiply_transposed(query, tables.pixel_pixel)
    grad_r = grad.r + (query * tables.position_pixel.flatten(1)).sum(-1) + (grad_u * s).sum(-1)
    grad_variance = (-0.5 * grad_r).unsqueeze(-1) * r**3
    weighted = grad_variance * s
    gradients = {
        "gram": weighted.flatten(0, 1).t() @ s.flatten(0, 1),
        "cross": weighted.sum(0),
        "square": grad_variance.sum(0).squeeze(-1),
        "pixel_pixel": factors.u.flatten(0, 1).t() @ query.flatten(0, 1),
        "position_pixel": (query * r).sum(0).view_as(tables.position_pixel),
        "pixel_bias": query.sum((0, 1)),
    }
    if not pixels_gradient:
        return gradients, None
    slope = multiply(s, tables.gram) + multiply_transposed(s, tables.gram) + tables.cross
    grad_s = grad_u * r + grad_variance * slope
    return gradients, grad_s[:, 1:].reshape(pixels.shape).to(pixels.dtype)


def multiply_transposed(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrixᵀ`; exact float32 where there is one channel, whatever the precision of products."""
    return (x * matrix).sum(-1, keepdim=True) if len(matrix) == 1 else x @ matrix.t()
