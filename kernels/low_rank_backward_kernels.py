"""The backward pass of the first transformer's attention; the maths are in `low_rank_kernels`.

Gradients leave the programs as parts that are summed up afterwards: those of r and u one part for every block
of keys (as queries) and of queries (as keys), with the class token's key as a block of its own; those of the
tables one part for each of a few parts of the sequences.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .low_rank_kernels import channel_ptr, class_key_weights, load_vector, score_terms, tile_ptrs
from .rounding import rounded_product, sum_of_products


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
    far_head = head.to(tl.int64)
    table_ptr += far_head * table_strides[1]
    bias_ptr += far_head * bias_strides[0]
    slope_ptr += far_head * slope_strides[1]
    query_ptr += far_head * query_strides[2]
    # (BLOCK_Q,)
    cls_table = load_vector(cls_table_ptr + far_head * cls_table_strides[1], offs_q, cls_table_strides[0], mask_q)
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
        factor = 1.0 / tl.load(total_ptr + offs_statistics + offs_q, mask=mask_q, other=1.0)
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
        cls_probability = tl.where(mask_q, tl.exp(r_cls * cls_weights - highest) * factor, 0.0)
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
            probability = tl.exp(scores) * factor[:, None]
            offs_column = (head * length + offs_k).to(tl.int64) * grad_strides[1]
            grad = tl.load(grad_rows + offs_row[:, None] + offs_column[None, :], mask=mask, other=0.0).to(tl.float32)
            grad_probability = grad * r_k[None, :]
            for c in range(CHANNELS):
                u_k = load_vector(channel_ptr(u_row + u_strides[1], c, u_strides[2]), offs_k, u_strides[1], mask_k)
                pixel_grad = load_vector(channel_ptr(pixel_grads, c, grad_strides[1]), offs_row, 1, mask_q)
                grad_probability += pixel_grad[:, None] * u_k[None, :]
            delta += sum_of_products(probability, grad_probability, 1)
        tl.store(delta_ptr + offs_statistics + offs_q, delta, mask=mask_q)
        grad_scores = cls_probability * (cls_grad * r_cls - delta)
        grad_weights = rounded_product(grad_scores, r_cls)
        grad_table += grad_weights * r_q
        grad_bias += tl.sum(grad_weights, 0)
        slot = ((key_blocks * heads + far_head) * sequences + sequence) * tokens
        query_parts = factor_parts_ptr + (slot + offs_q) * (1 + CHANNELS)
        tl.store(query_parts, grad_weights * cls_table, mask=mask_q)
        slot = (((key_blocks + 1 + first + block) * heads + far_head) * sequences + sequence) * tokens
        key_parts = factor_parts_ptr + slot * (1 + CHANNELS)
        share = rounded_product(grad_scores, cls_weights)
        tl.store(key_parts, tl.sum(cls_probability * cls_grad + share, 0))
        for c in range(CHANNELS):
            u_q = load_vector(channel_ptr(u_row, c, u_strides[2]), offs_q, u_strides[1], mask_q)
            grad_slope += tl.where(offs_c == c, sum_of_products(grad_weights, u_q, 0), 0.0)
            tl.store(query_parts + 1 + c, grad_weights * tl.load(slope_ptr + c * slope_strides[0]), mask=mask_q)
            tl.store(key_parts + 1 + c, 0.0)
    table_parts_ptr += ((part * tokens + offs_q).to(tl.int64) * heads + head) * tokens
    tl.store(table_parts_ptr, grad_table, mask=mask_q)
    slope_parts_ptr += ((first + block) * PARTS + part).to(tl.int64) * heads * tokens * (1 + CHANNELS)
    slope_parts_ptr += far_head * tokens * (1 + CHANNELS)
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
    far_head = head.to(tl.int64)
    table_ptr += far_head * table_strides[1]
    bias_ptr += far_head * bias_strides[0]
    slope_ptr += far_head * slope_strides[1]
    query_ptr += far_head * query_strides[2]
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
        factor = 1.0 / tl.load(total_ptr + offs_statistics + offs_q, mask=mask_q, other=1.0)
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
        probability = tl.exp(scores) * factor[:, None]
        grad = tl.load(grad_rows + offs_row[:, None] + offs_column[None, :], mask=mask, other=0.0).to(tl.float32)
        grad_probability = grad * r_k[None, :]
        for c in range(CHANNELS):
            u_k = load_vector(channel_ptr(u_row + u_strides[1], c, u_strides[2]), offs_k, u_strides[1], mask_k)
            pixel_grad = load_vector(channel_ptr(pixel_grads, c, grad_strides[1]), offs_row, 1, mask_q)
            grad_probability += pixel_grad[:, None] * u_k[None, :]
        grad_scores = probability * (grad_probability - delta[:, None])
        grad_weights = rounded_product(grad_scores, r_k[None, :])
        grad_table += grad_weights * r_q[:, None]
        grad_bias += tl.sum(grad_weights, 0)
        slot = ((key_block * heads + far_head) * sequences + sequence) * tokens
        query_parts = factor_parts_ptr + (slot + offs_q) * (1 + CHANNELS)
        tl.store(query_parts, sum_of_products(grad_weights, table, 1), mask=mask_q)
        slot = (((key_blocks + 1 + first + block) * heads + far_head) * sequences + sequence) * tokens
        key_parts = factor_parts_ptr + (slot + 1 + offs_k) * (1 + CHANNELS)
        share = rounded_product(grad_scores, weights)
        tl.store(key_parts, tl.sum(probability * grad + share, 0), mask=mask_k)
        row = (key_block * sequences + sequence) * tokens + offs_q
        grad_query_ptrs = query_parts_ptr + (row * heads + head) * CHANNELS
        for c in range(CHANNELS):
            u_q = load_vector(channel_ptr(u_row, c, u_strides[2]), offs_q, u_strides[1], mask_q)
            u_k = load_vector(channel_ptr(u_row + u_strides[1], c, u_strides[2]), offs_k, u_strides[1], mask_k)
            query = load_vector(channel_ptr(query_row, c, query_strides[3]), offs_q, query_strides[1], mask_q)
            slope = load_vector(slope_ptr + slope_strides[2] + c * slope_strides[0], offs_k, slope_strides[2], mask_k)
            pixel_grad = load_vector(channel_ptr(pixel_grads, c, grad_strides[1]), offs_row, 1, mask_q)
            share = sum_of_products(grad_weights, u_q[:, None], 0)
            grad_slope += tl.where(offs_c[:, None] == c, share[None, :], 0.0)
            tl.store(query_parts + 1 + c, sum_of_products(grad_weights, slope[None, :], 1), mask=mask_q)
            share = probability * pixel_grad[:, None] + rounded_product(grad_scores, query[:, None])
            tl.store(key_parts + 1 + c, tl.sum(share, 0), mask=mask_k)
            tl.store(grad_query_ptrs + c, sum_of_products(grad_scores, u_k[None, :], 1), mask=mask_q)
    offs_table = ((part * tokens + offs_q).to(tl.int64) * heads + head) * tokens
    tl.store(table_parts_ptr + offs_table[:, None] + 1 + offs_k[None, :], grad_table, mask=mask)
    slope_parts_ptr += ((first + block) * PARTS + part).to(tl.int64) * heads * tokens * (1 + CHANNELS)
    slope_parts_ptr += (far_head * tokens + 1) * (1 + CHANNELS)
    tl.store(slope_parts_ptr + offs_k * (1 + CHANNELS), grad_bias, mask=mask_k)
    slope_ptrs = slope_parts_ptr + 1 + offs_c[:, None] + (offs_k * (1 + CHANNELS))[None, :]
    tl.store(slope_ptrs, grad_slope, mask=(offs_c < CHANNELS)[:, None] & mask_k[None, :])
