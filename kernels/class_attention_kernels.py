"""Attention of the class token alone, one query per head and sequence, over a token grid.

Of every sequence (a column for the axis "height", a row for "width") with tokens x_j, j = 1 … L, and the
class token as key 0, head h:

    x̂_j = n(x_j + pos_j),   s_hj = q_h · x̂_j,   s_h0 = q_h · ĉ,   P = softmax over j = 0 … L,
    o_h = Σ_j P_hj x̂_j + P_h0 ĉ,

where n is the normalization without its affine part, ĉ the class token normalized, and q_h the class token's
query taken back through the key weights, scale inside. Keys and values are one tensor, no token is projected,
and the grid is read once: a program streams over the tokens of a sequence, normalizes them as they come, and
starts its softmax with the class token as first key.

Saved for backward: the operands, the output, and of every query the highest score and the sum of the
exponentials, float32 and apart: a log-sum-exp would round away digits of the class token's probability. With
Δ_h = do_h · o_h and dS_hj = P_hj (do_h · x̂_j - Δ_h),

    dx̂_j = Σ_h P_hj do_h + dS_hj q_h,   dq_h = Σ_j dS_hj x̂_j + dS_h0 ĉ,   dĉ = Σ_h P_h0 do_h + dS_h0 q_h,

and dx from dx̂ by the normalization's backward pass. For the class token do_h · ĉ - Δ_h is summed up as
do_h · (ĉ - o_h), which keeps its digits where the class token takes all attention.

A program of the backward pass keeps one block of positions for a slice of a sample's sequences, so dpos, dq and
dĉ leave it as one part per slice; parts have places of their own in buffers that are summed up afterwards, so
every run gives the same bits.

Tokens are float32, float16 or bfloat16, rounded to the query's dtype once they are normalized. Statistics
and sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .normalization import load_tokens, standardize, standardize_backward, store_tokens
from .rounding import dot, sum_of_products


@triton.jit
def product_over_features(a, b, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """The float32 `(M, N)` product a bᵀ of `(M, D)` and `(N, D)`, summed over chunks of features.

    The chunks are shared out among the warps; whole rows as operands would not fit the registers.
    """
    CHUNK: tl.constexpr = 16
    a = tl.permute(tl.reshape(a, (M, D // CHUNK, CHUNK)), (1, 0, 2))
    b = tl.permute(tl.reshape(b, (N, D // CHUNK, CHUNK)), (1, 2, 0))
    return tl.sum(dot(a, b), 0)


@triton.jit
def load_statistics(statistics_ptr, sample, row, offs_h, statistics_strides, mask_h):
    """Of every head of a sequence the highest score, and the sum of the exponentials of all less the highest."""
    ptrs = statistics_ptr + sample * statistics_strides[0] + row * statistics_strides[1]
    ptrs += offs_h * statistics_strides[2]
    highest = tl.load(ptrs, mask=mask_h, other=0.0)
    total = tl.load(ptrs + statistics_strides[3], mask=mask_h, other=1.0)
    return highest, total


@triton.jit
def class_attention_fwd_kernel(
    grid_ptr,
    pos_ptr,
    query_ptr,
    cls_ptr,
    valid_ptr,
    attended_ptr,
    statistics_ptr,
    grid_strides,
    pos_strides,
    query_strides,
    cls_strides,
    rows,
    length,
    heads,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: all heads of one sequence, its tokens in blocks of `BLOCK_K`.

    `valid_ptr` is that of `(batch,)` tokens that are keys, or None for all.
    """
    sequence = tl.program_id(0).to(tl.int64)
    sample, row = sequence // rows, sequence % rows
    offs_h = tl.arange(0, BLOCK_H).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_h = offs_h < heads
    dtype = query_ptr.dtype.element_ty
    grid_ptr += sample * grid_strides[0] + row * grid_strides[1]
    query_ptr += sample * query_strides[0]
    # (BLOCK_H, BLOCK_D)
    query = load_tokens(query_ptr, offs_h * query_strides[1], offs_d, query_strides[2], mask_h, WIDTH)
    # (BLOCK_D,)
    cls_ptrs = cls_ptr + sample * cls_strides[0] + offs_d * cls_strides[1]
    cls_hat = tl.load(cls_ptrs, mask=offs_d < WIDTH, other=0.0).to(tl.float32)
    # (BLOCK_H,)
    highest = sum_of_products(query, cls_hat[None, :], 1)
    total = tl.full((BLOCK_H,), 1.0, tl.float32)
    # (BLOCK_H, BLOCK_D)
    attended = tl.zeros((BLOCK_H, BLOCK_D), tl.float32) + cls_hat[None, :]
    query = query.to(dtype)
    if valid_ptr is not None:
        length = tl.load(valid_ptr + sample).to(tl.int32)
    for start in range(0, length, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask_k = offs_k < length
        position = offs_k.to(tl.int64)
        # (BLOCK_K, BLOCK_D)
        x = load_tokens(grid_ptr, position * grid_strides[2], offs_d, grid_strides[3], mask_k, WIDTH)
        x += load_tokens(pos_ptr, position * pos_strides[0], offs_d, pos_strides[1], mask_k, WIDTH)
        hat, _ = standardize(x, offs_d, eps, WIDTH)
        hat = hat.to(dtype)
        # (BLOCK_H, BLOCK_K)
        scores = product_over_features(query, hat, BLOCK_H, BLOCK_K, BLOCK_D)
        scores = tl.where(mask_k[None, :], scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, 1))
        probability = tl.exp(scores - raised[:, None])
        decay = tl.exp(highest - raised)
        total = total * decay + tl.sum(probability, 1)
        attended = dot(probability.to(dtype), hat, attended * decay[:, None])
        highest = raised
    attended = attended * (1.0 / total)[:, None]
    store_tokens(attended_ptr + sequence * heads * WIDTH, attended, offs_h * WIDTH, offs_d, 1, mask_h, WIDTH)
    statistics_ptrs = statistics_ptr + (sequence * heads + offs_h) * 2
    tl.store(statistics_ptrs, highest, mask=mask_h)
    tl.store(statistics_ptrs + 1, total, mask=mask_h)


@triton.jit
def class_key_bwd_kernel(
    grad_attended_ptr,
    query_ptr,
    cls_ptr,
    attended_ptr,
    statistics_ptr,
    delta_ptr,
    query_part_ptr,
    cls_part_ptr,
    grad_attended_strides,
    query_strides,
    cls_strides,
    attended_strides,
    statistics_strides,
    rows,
    heads,
    slices,
    parts,
    WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program: Δ and the class token's own key, for `ROWS` sequences of a sample."""
    part = tl.program_id(0)
    sample, first = (part // slices).to(tl.int64), part % slices * ROWS
    offs_h = tl.arange(0, BLOCK_H).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_h = offs_h < heads
    query_ptr += sample * query_strides[0]
    # (BLOCK_D,)
    cls_ptrs = cls_ptr + sample * cls_strides[0] + offs_d * cls_strides[1]
    cls_hat = tl.load(cls_ptrs, mask=offs_d < WIDTH, other=0.0).to(tl.float32)
    grad_cls = tl.zeros((BLOCK_D,), tl.float32)
    # (BLOCK_H, BLOCK_D)
    query = load_tokens(query_ptr, offs_h * query_strides[1], offs_d, query_strides[2], mask_h, WIDTH)
    # (BLOCK_H,)
    scores = sum_of_products(query, cls_hat[None, :], 1)
    grad_scores_sum = tl.zeros((BLOCK_H,), tl.float32)
    for step in range(tl.minimum(ROWS, rows - first)):
        row = (first + step).to(tl.int64)
        offs_row = sample * grad_attended_strides[0] + row * grad_attended_strides[1]
        offs_grad = offs_row + offs_h * grad_attended_strides[2]
        offs_row = sample * attended_strides[0] + row * attended_strides[1]
        offs_attended = offs_row + offs_h * attended_strides[2]
        # (BLOCK_H, BLOCK_D)
        grad_attended = load_tokens(grad_attended_ptr, offs_grad, offs_d, grad_attended_strides[3], mask_h, WIDTH)
        attended = load_tokens(attended_ptr, offs_attended, offs_d, attended_strides[3], mask_h, WIDTH)
        # (BLOCK_H,)
        delta = sum_of_products(grad_attended, attended, 1)
        tl.store(delta_ptr + (sample * rows + row) * heads + offs_h, delta, mask=mask_h)
        highest, total = load_statistics(statistics_ptr, sample, row, offs_h, statistics_strides, mask_h)
        probability = tl.exp(scores - highest) / total
        grad_scores = probability * sum_of_products(grad_attended, cls_hat[None, :] - attended, 1)
        grad_scores_sum += grad_scores
        # (BLOCK_D,)
        grad_cls += tl.sum(probability[:, None] * grad_attended + grad_scores[:, None] * query, 0)
    tl.store(cls_part_ptr + part.to(tl.int64) * WIDTH + offs_d, grad_cls, mask=offs_d < WIDTH)
    # (BLOCK_H, BLOCK_D)
    grad_query = grad_scores_sum[:, None] * cls_hat[None, :]
    query_part_ptr += part.to(tl.int64) * parts * heads * WIDTH
    store_tokens(query_part_ptr, grad_query, offs_h * WIDTH, offs_d, 1, mask_h, WIDTH)


@triton.jit
def class_attention_bwd_kernel(
    grad_attended_ptr,
    grid_ptr,
    pos_ptr,
    query_ptr,
    statistics_ptr,
    valid_ptr,
    delta_ptr,
    grad_grid_ptr,
    pos_part_ptr,
    query_part_ptr,
    grad_attended_strides,
    grid_strides,
    pos_strides,
    query_strides,
    statistics_strides,
    grad_grid_strides,
    rows,
    length,
    heads,
    slices,
    blocks,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program: one block of `BLOCK_K` positions in `ROWS` sequences of a sample."""
    part, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    sample, first = (part // slices).to(tl.int64), part % slices * ROWS
    offs_h = tl.arange(0, BLOCK_H).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D).to(tl.int64)
    offs_k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_h = offs_h < heads
    mask_k = offs_k < length
    key_mask = mask_k
    if valid_ptr is not None:
        key_mask = offs_k < tl.load(valid_ptr + sample).to(tl.int32)
    position = offs_k.to(tl.int64)
    dtype = query_ptr.dtype.element_ty
    query_ptr += sample * query_strides[0]
    # (BLOCK_H, BLOCK_D)
    grad_query = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    # (BLOCK_K, BLOCK_D)
    grad_pos = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for step in range(tl.minimum(ROWS, rows - first)):
        row = (first + step).to(tl.int64)
        offs_row = sample * grid_strides[0] + row * grid_strides[1]
        # (BLOCK_K, BLOCK_D)
        x = load_tokens(grid_ptr + offs_row, position * grid_strides[2], offs_d, grid_strides[3], mask_k, WIDTH)
        x += load_tokens(pos_ptr, position * pos_strides[0], offs_d, pos_strides[1], mask_k, WIDTH)
        hat, r = standardize(x, offs_d, eps, WIDTH)
        key = hat.to(dtype)
        offs_row = sample * grad_attended_strides[0] + row * grad_attended_strides[1]
        offs_grad = offs_row + offs_h * grad_attended_strides[2]
        # (BLOCK_H, BLOCK_D)
        query = load_tokens(query_ptr, offs_h * query_strides[1], offs_d, query_strides[2], mask_h, WIDTH).to(dtype)
        grad = load_tokens(grad_attended_ptr, offs_grad, offs_d, grad_attended_strides[3], mask_h, WIDTH).to(dtype)
        # (BLOCK_H, BLOCK_K)
        scores = product_over_features(query, key, BLOCK_H, BLOCK_K, BLOCK_D)
        grad_probability = product_over_features(grad, key, BLOCK_H, BLOCK_K, BLOCK_D)
        # (BLOCK_H,)
        highest, total = load_statistics(statistics_ptr, sample, row, offs_h, statistics_strides, mask_h)
        delta = tl.load(delta_ptr + (sample * rows + row) * heads + offs_h, mask=mask_h, other=0.0)
        # (BLOCK_H, BLOCK_K)
        scores = tl.where(key_mask[None, :], scores - (highest + tl.log(total))[:, None], float("-inf"))
        probability = tl.exp(scores)
        grad_scores = (probability * (grad_probability - delta[:, None])).to(dtype)
        probability = probability.to(dtype)
        grad_query = dot(grad_scores, key, grad_query)
        # (BLOCK_K, BLOCK_D)
        grad_hat = dot(tl.trans(probability), grad)
        grad_hat = dot(tl.trans(grad_scores), query, grad_hat)
        grad_x = standardize_backward(grad_hat, hat, r, WIDTH)
        offs_row = sample * grad_grid_strides[0] + row * grad_grid_strides[1]
        offs_grad = offs_row + position * grad_grid_strides[2]
        store_tokens(grad_grid_ptr, grad_x, offs_grad, offs_d, grad_grid_strides[3], mask_k, WIDTH)
        grad_pos += grad_x
    part = part.to(tl.int64)
    store_tokens(pos_part_ptr + part * length * WIDTH, grad_pos, position * WIDTH, offs_d, 1, mask_k, WIDTH)
    query_part_ptr += (part * (blocks + 1) + block) * heads * WIDTH
    store_tokens(query_part_ptr, grad_query, offs_h * WIDTH, offs_d, 1, mask_h, WIDTH)
