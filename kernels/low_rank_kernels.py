"""Attention of the model's first transformer, whose tokens are pixels times weights plus a constant.

A token is `s_i A + c_i`, s_i the `channels` values of its pixel; the class token, in front as token 0, has
s_0 = 0. With r_i its normalization's factor, u_i = r_i s_i, and q_i = u_i E + r_i G_i + e per head, the scores are

    s_ij = q_i · u_j + r_j w_ij,   w_ij = u_i · F_j + r_i T_ij + f_j,   P = softmax over j = 0 … L.

Values are fixed by the weights, so all that is computed per token are the coefficients of its output in
them, per head P_ij r_j for every grid token j, P_i0 r_0 for the class token, and Σ_j P_ij u_j for the pixels:

    row of token i: [heads × L of the tokens | heads of the class token | heads × channels | zeros].

A program keeps one block of queries of one head, and walks through sequences: the tile of T that it needs
stays in registers where all keys are one tile. The class token is a column of scores of its own; its query
goes through the same kernels as a block of one query. Channels are few: they are summed up one by one.

Saved for backward: r, u, q, and of every query the highest score and the sum of the exponentials less the
highest. With g the gradient of a row, of parts g_ij, g_i0, g_ic,

    dP_ij = r_j g_ij + Σ_c u_jc g_ic,   dP_i0 = r_0 g_i0,   Δ_i = Σ_j P_ij dP_ij,   dS_ij = P_ij (dP_ij - Δ_i),
    dw_ij = r_j dS_ij,   dT_ij = Σ r_i dw_ij,   df_j = Σ dw_ij,   dF_j = Σ u_i dw_ij   (over sequences, and i),
    dq_i = Σ_j dS_ij u_j,   dr_j = Σ_i P_ij g_ij + dS_ij w_ij,   du_jc = Σ_i P_ij g_ic + dS_ij q_ic,
    dr_i += Σ_j dw_ij T_ij,   du_i += Σ_j dw_ij F_j.

Every part of a sum that leaves a program has a place of its own in a buffer that is summed up afterwards, so
every run gives the same bits. Tables, statistics and sums are float32; rows are in the dtype of their buffer.
The slopes F take their offset from channel to channel in 32 bits, since in 64 registers spill: their launcher gives
them contiguous, with less than 2³¹ values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rounding import sum_of_products


@triton.jit
def load_vector(ptr, offs, stride, mask):
    """Load `(size,)` as float32, zero where masked."""
    return tl.load(ptr + offs.to(tl.int64) * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def channel_ptr(ptr, channel, stride):
    """The pointer `channel` strides behind `ptr`; the channel is a loop's number, of 32 bits."""
    return ptr + tl.cast(channel, tl.int64) * stride


@triton.jit
def tile_ptrs(ptr, offs_q, offs_k, stride_q, stride_k):
    """Pointers to a tile of queries and keys."""
    return ptr + (offs_q.to(tl.int64) * stride_q)[:, None] + (offs_k.to(tl.int64) * stride_k)[None, :]


@triton.jit
def class_key_weights(
    table, bias, r_q, u_ptr, slope_ptr, offs_q, stride_token, stride_c, stride_slope, mask_q, C: tl.constexpr
):
    """The w_i0 of queries `(BLOCK_Q,)`."""
    weights = r_q * table + bias
    for c in range(C):
        u_q = load_vector(channel_ptr(u_ptr, c, stride_c), offs_q, stride_token, mask_q)
        weights += u_q * tl.load(slope_ptr + c * stride_slope)
    return weights


@triton.jit
def score_terms(
    table,
    bias,
    r_q,
    u_ptr,
    query_ptr,
    slope_ptr,
    offs_q,
    offs_k,
    mask_q,
    mask_k,
    u_strides,
    query_strides,
    slope_strides,
    C: tl.constexpr,
):
    """The q_i · u_j and the w_ij of a tile `(BLOCK_Q, BLOCK_K)`; queries count all tokens, keys the grid's alone."""
    weights = r_q[:, None] * table + bias[None, :]
    contents = tl.zeros_like(weights)
    for c in range(C):
        u_q = load_vector(channel_ptr(u_ptr, c, u_strides[2]), offs_q, u_strides[1], mask_q)
        u_k = load_vector(channel_ptr(u_ptr + u_strides[1], c, u_strides[2]), offs_k, u_strides[1], mask_k)
        query = load_vector(channel_ptr(query_ptr, c, query_strides[3]), offs_q, query_strides[1], mask_q)
        slope = load_vector(slope_ptr + slope_strides[2] + c * slope_strides[0], offs_k, slope_strides[2], mask_k)
        weights += u_q[:, None] * slope[None, :]
        contents += query[:, None] * u_k[None, :]
    return contents, weights


@triton.jit
def low_rank_fwd_kernel(
    r_ptr,
    u_ptr,
    query_ptr,
    slope_ptr,
    table_ptr,
    cls_table_ptr,
    bias_ptr,
    rows_ptr,
    highest_ptr,
    total_ptr,
    r_strides,
    u_strides,
    query_strides,
    slope_strides,
    table_strides,
    cls_table_strides,
    bias_strides,
    sequences,
    length,
    heads,
    columns,
    first,
    queries,
    blocks,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program: `BLOCK_Q` queries of one head in one of `PARTS` parts of the sequences."""
    index = tl.program_id(0)
    block, head, part = index % blocks, index // blocks % heads, index // (blocks * heads)
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
    cls_bias = tl.load(bias_ptr)
    # (BLOCK_Q, BLOCK_K), (BLOCK_K,)
    offs_k = tl.arange(0, BLOCK_K)
    mask_k = offs_k < length
    mask = mask_q[:, None] & mask_k[None, :]
    table = tl.load(tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2]), mask=mask, other=0.0)
    bias = load_vector(bias_ptr + bias_strides[1], offs_k, bias_strides[1], mask_k)
    size = tl.cdiv(sequences, PARTS)
    for step in range(tl.minimum(size, sequences - part * size)):
        sequence = (part * size + step).to(tl.int64)
        r_row, u_row = r_ptr + sequence * r_strides[0], u_ptr + sequence * u_strides[0]
        query_row = query_ptr + sequence * query_strides[0]
        # (BLOCK_Q,)
        r_q = load_vector(r_row, offs_q, r_strides[1], mask_q)
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
        cls_scores = r_cls * cls_weights
        highest = cls_scores
        total = tl.full((BLOCK_Q,), 1.0, tl.float32)
        for start in range(0, length, BLOCK_K):
            if not RESIDENT:
                offs_k = start + tl.arange(0, BLOCK_K)
                mask_k = offs_k < length
                mask = mask_q[:, None] & mask_k[None, :]
                table_ptrs = tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2])
                table = tl.load(table_ptrs, mask=mask, other=0.0)
                bias = load_vector(bias_ptr + bias_strides[1], offs_k, bias_strides[1], mask_k)
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
            scores = tl.where(mask_k[None, :], contents + r_k[None, :] * weights, float("-inf"))
            raised = tl.maximum(highest, tl.max(scores, 1))
            total = total * tl.exp(highest - raised) + tl.sum(tl.exp(scores - raised[:, None]), 1)
            highest = raised
        rows_ptrs = rows_ptr + sequence * queries * columns + (offs_q - first).to(tl.int64) * columns
        factor = 1.0 / total
        # (BLOCK_Q, BLOCK_C)
        from_pixels = tl.zeros((BLOCK_Q, BLOCK_C), tl.float32)
        for start in range(0, length, BLOCK_K):
            if not RESIDENT:
                offs_k = start + tl.arange(0, BLOCK_K)
                mask_k = offs_k < length
                mask = mask_q[:, None] & mask_k[None, :]
                table_ptrs = tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2])
                table = tl.load(table_ptrs, mask=mask, other=0.0)
                bias = load_vector(bias_ptr + bias_strides[1], offs_k, bias_strides[1], mask_k)
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
            scores = tl.where(mask_k[None, :], contents + r_k[None, :] * weights, float("-inf"))
            probability = tl.exp(scores - highest[:, None]) * factor[:, None]
            offs_column = head * length + offs_k
            coefficients = (probability * r_k[None, :]).to(rows_ptr.dtype.element_ty)
            tl.store(rows_ptrs[:, None] + offs_column[None, :], coefficients, mask=mask)
            for c in range(CHANNELS):
                u_k = load_vector(channel_ptr(u_row + u_strides[1], c, u_strides[2]), offs_k, u_strides[1], mask_k)
                share = sum_of_products(probability, u_k[None, :], 1)
                from_pixels += tl.where(offs_c[None, :] == c, share[:, None], 0.0)
        cls_coefficients = tl.exp(cls_scores - highest) * factor * r_cls
        tl.store(rows_ptrs + heads * length + head, cls_coefficients.to(rows_ptr.dtype.element_ty), mask=mask_q)
        pixel_ptrs = rows_ptrs[:, None] + heads * (length + 1) + head * CHANNELS + offs_c[None, :]
        mask_pixels = mask_q[:, None] & (offs_c < CHANNELS)[None, :]
        tl.store(pixel_ptrs, from_pixels.to(rows_ptr.dtype.element_ty), mask=mask_pixels)
        if head == 0:
            offs_pad = heads * (length + 1 + CHANNELS) + tl.arange(0, 16)
            pad = tl.zeros((BLOCK_Q, 16), rows_ptr.dtype.element_ty)
            mask_pad = mask_q[:, None] & (offs_pad < columns)[None, :]
            tl.store(rows_ptrs[:, None] + offs_pad[None, :], pad, mask=mask_pad)
        offs_statistics = (sequence * heads + head) * (length + 1)
        tl.store(highest_ptr + offs_statistics + offs_q, highest, mask=mask_q)
        tl.store(total_ptr + offs_statistics + offs_q, total, mask=mask_q)
