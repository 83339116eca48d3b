"""Attention along one axis of a token grid, the class token apart.

Of every sequence (a column for the axis "height", a row for "width") with tokens i = 1 … L, head h:

    s_ij = q_i · k_j,   s_i0 = q_i · k_0,   P = softmax over j = 0 … L,   o_i = Σ_j P_ij v_j,

where token 0 is the class token: its key and value are the same for all sequences of a sample, and its
own query gives one output per sequence. The scale is in the query already. Heads may share keys
(multi-query), and values may be the keys themselves, as in the merged form.

Shapes inside: queries `(batch, rows, length, heads, head_dim)`, keys `(batch, rows, length, key_heads,
head_dim)`, in any strides: the axis is a matter of strides, nothing is transposed or copied. The class
token starts the streamed softmax as its first key, so 128 grid tokens are exactly one tile of 128. Its
queries go through the same kernel, the heads of one key head standing in for the tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rounding import dot, sum_of_products

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tile(ptr, offs_m, offs_d, stride_m, stride_d, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, EVEN: tl.constexpr):
    """Load rows `offs_m` of `(SIZE, HEAD_DIM)`, zero outside; `EVEN` where no tile overruns."""
    ptrs = ptr + offs_m.to(tl.int64)[:, None] * stride_m + offs_d.to(tl.int64)[None, :] * stride_d
    if EVEN:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=(offs_m < SIZE)[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)
    return tile


@triton.jit
def store_tile(
    ptr, tile, offs_m, offs_d, stride_m, stride_d, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, EVEN: tl.constexpr
):
    """Store rows `offs_m` of `(SIZE, HEAD_DIM)` in the dtype of `ptr`."""
    ptrs = ptr + offs_m.to(tl.int64)[:, None] * stride_m + offs_d.to(tl.int64)[None, :] * stride_d
    if EVEN:
        tl.store(ptrs, tile.to(ptr.dtype.element_ty))
    else:
        tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=(offs_m < SIZE)[:, None] & (offs_d < HEAD_DIM)[None, :])


@triton.jit
def load_vector(ptr, offs, stride, SIZE: tl.constexpr, OTHER: tl.constexpr):
    """Load `(SIZE,)` as float32, `OTHER` outside."""
    return tl.load(ptr + offs.to(tl.int64) * stride, mask=offs < SIZE, other=OTHER).to(tl.float32)


@triton.jit
def load_valid(ptr, batch, SIZE: tl.constexpr):
    """How many keys of a sample's sequences count: all `SIZE` where `ptr` is None."""
    if ptr is None:
        valid: tl.constexpr = SIZE
    else:
        valid = tl.load(ptr + batch).to(tl.int32)
    return valid


@triton.jit
def inner_products(
    left,
    right,
    left_source,
    right_source,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The products of two tiles of tokens `(·, BLOCK_D)` with one another.

    Where `BLOCK_C` is less than `BLOCK_D` they are summed up over slices of so many features, loaded again from
    their source (pointer, tokens, strides, number of tokens): products without tensor cores keep all features
    that they sum up in registers.
    """
    if BLOCK_C == BLOCK_D:
        products = dot(left, tl.trans(right))
    else:
        products = tl.zeros((left.shape[0], right.shape[0]), tl.float32)
        for start in range(0, BLOCK_D, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            # (·, BLOCK_C)
            a = load_slice(left_source, offs_c, HEAD_DIM)
            b = load_slice(right_source, offs_c, HEAD_DIM)
            products = dot(a, tl.trans(b), products)
    return products


@triton.jit
def load_slice(source, offs_d, HEAD_DIM: tl.constexpr):
    """Load the features `offs_d` of tokens from their source (pointer, tokens, strides, number of tokens)."""
    ptr, offs_m, strides, size = source
    ptrs = ptr + offs_m.to(tl.int64)[:, None] * strides[2] + offs_d.to(tl.int64)[None, :] * strides[4]
    return tl.load(ptrs, mask=(offs_m < size)[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def axis_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cls_k_ptr,
    cls_v_ptr,
    valid_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    cls_k_strides,
    cls_v_strides,
    out_strides,
    lse_strides,
    rows,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOGETHER: tl.constexpr = 0,
):
    """One program: `BLOCK_Q` queries of one head, or `TOGETHER` of every head that shares keys, with streamed softmax.

    Keys that one tile holds are then loaded once for all these heads. Strides are `(batch, row, token, head, dim)`; of
    the class token's key and value `(batch, head, dim)`; of the log-sum-exp `(batch, row, token, head, part)`.
    `valid_ptr` is that of `(batch,)` keys, or None for all.
    """
    TILES: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    MEMBERS: tl.constexpr = GROUP if TOGETHER else 1
    EVEN_Q: tl.constexpr = QUERIES % BLOCK_Q == 0 and HEAD_DIM == BLOCK_D
    EVEN_K: tl.constexpr = KEYS % BLOCK_K == 0 and HEAD_DIM == BLOCK_D
    HELD: tl.constexpr = MEMBERS > 1 and KEYS <= BLOCK_K
    pid = tl.program_id(0)
    tile, first = pid % TILES, (pid // TILES) % (HEADS // MEMBERS) * MEMBERS
    key_head = (first // GROUP).to(tl.int64)
    sequence = pid // (TILES * (HEADS // MEMBERS))
    batch, row = (sequence // rows).to(tl.int64), (sequence % rows).to(tl.int64)
    q_ptr += batch * q_strides[0] + row * q_strides[1]
    k_ptr += batch * k_strides[0] + row * k_strides[1] + key_head * k_strides[3]
    v_ptr += batch * v_strides[0] + row * v_strides[1] + key_head * v_strides[3]
    out_ptr += batch * out_strides[0] + row * out_strides[1]
    lse_ptr += batch * lse_strides[0] + row * lse_strides[1]
    cls_k_ptr += batch * cls_k_strides[0] + key_head * cls_k_strides[1]
    cls_v_ptr += batch * cls_v_strides[0] + key_head * cls_v_strides[1]

    offs_q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_k = tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    valid = load_valid(valid_ptr, batch, KEYS)
    if HELD:
        # (BLOCK_K, BLOCK_D)
        k = load_tile(k_ptr, offs_k, offs_d, k_strides[2], k_strides[4], KEYS, HEAD_DIM, EVEN_K)
        if SHARED:
            v = k
        else:
            v = load_tile(v_ptr, offs_k, offs_d, v_strides[2], v_strides[4], KEYS, HEAD_DIM, EVEN_K)
    # What depends on no head is computed for each anew: held all the time it would not fit the registers.
    for member in tl.range(0, MEMBERS, disable_licm=True):
        head = (first + member).to(tl.int64)
        head_q_ptr = q_ptr + head * q_strides[3]
        # (BLOCK_Q, BLOCK_D)
        q = load_tile(head_q_ptr, offs_q, offs_d, q_strides[2], q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
        # (BLOCK_D,)
        cls_k = load_vector(cls_k_ptr, offs_d, cls_k_strides[2], HEAD_DIM, 0.0)
        cls_v = load_vector(cls_v_ptr, offs_d, cls_v_strides[2], HEAD_DIM, 0.0)
        # (BLOCK_Q,)
        largest = sum_of_products(q.to(tl.float32), cls_k[None, :], 1)
        total = tl.full((BLOCK_Q,), 1.0, tl.float32)
        # (BLOCK_Q, BLOCK_D)
        acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32) + cls_v[None, :]
        q_source = (head_q_ptr, offs_q, q_strides, QUERIES)
        for start in range(0, KEYS if HELD else valid, BLOCK_K):
            if not HELD:
                # (BLOCK_K, BLOCK_D)
                k = load_tile(k_ptr, start + offs_k, offs_d, k_strides[2], k_strides[4], KEYS, HEAD_DIM, EVEN_K)
                if SHARED:
                    v = k
                else:
                    v = load_tile(v_ptr, start + offs_k, offs_d, v_strides[2], v_strides[4], KEYS, HEAD_DIM, EVEN_K)
            # (BLOCK_Q, BLOCK_K)
            k_source = (k_ptr, start + offs_k, k_strides, KEYS)
            scores = inner_products(q, k, q_source, k_source, HEAD_DIM, BLOCK_D, BLOCK_C)
            if KEYS % BLOCK_K != 0 or valid_ptr is not None:
                scores = tl.where((start + offs_k < valid)[None, :], scores, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            rescale = tl.exp2((largest - new_largest) * LOG2E)
            p = tl.exp2((scores - new_largest[:, None]) * LOG2E)
            total = total * rescale + tl.sum(p, 1)
            largest = new_largest
            acc = dot(p.to(v.dtype), v, acc * rescale[:, None])
        acc *= (1.0 / total)[:, None]
        head_out_ptr = out_ptr + head * out_strides[3]
        store_tile(head_out_ptr, acc, offs_q, offs_d, out_strides[2], out_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
        lse_ptrs = lse_ptr + head * lse_strides[3] + offs_q.to(tl.int64) * lse_strides[2]
        tl.store(lse_ptrs, largest, mask=offs_q < QUERIES)
        tl.store(lse_ptrs + lse_strides[4], total, mask=offs_q < QUERIES)
