"""The gradients of `attention`.

Saved for backward: the operands, and of every query the log-sum-exp in two parts, the highest score and the
sum of the exponentials less it: one number would lose the digits of large scores. With
dP_ij = do_i · v_j, Δ_i = Σ_j P_ij dP_ij (not do_i · o_i, which has the rounding of o_i) and dS_ij = P_ij (dP_ij - Δ_i),

    dq_i = Σ_j dS_ij k_j,   dk_j = Σ_i dS_ij q_i,   dv_j = Σ_i P_ij do_i;

where values are the keys, dk and dv are one accumulator. Sums over programs go through buffers of fixed
layout, so every run gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import LOG2E, inner_products, load_tile, load_vector, store_tile
from .rounding import dot, sum_of_products

COLUMNS = tl.constexpr(16)


@triton.jit
def load_lse(ptr, offs, stride_part, mask):
    """Load the highest score and the factor of the exponentials less it, 0 where nothing is."""
    highest = tl.load(ptr + offs, mask=mask, other=0.0)
    total = tl.load(ptr + offs + stride_part, mask=mask, other=float("inf"))
    return highest, 1.0 / total


@triton.jit
def load_padded(ptr, batch):
    """How many keys of a sample's sequences count, None for all."""
    if ptr is None:
        valid = None
    else:
        valid = tl.load(ptr + batch).to(tl.int32)
    return valid


@triton.jit
def weights_of(scores, highest, factor):
    """The attention weights of scores; the statistics broadcast."""
    return tl.exp2((scores - highest) * LOG2E) * factor


@triton.jit
def class_products(tile, vector, ON_TENSOR_CORES: tl.constexpr):
    """The products of the tokens of a tile `(tokens, BLOCK_D)` with one vector `(BLOCK_D,)`, as float32 `(tokens,)`.

    On tensor cores one column of the right operand is used: the tile in float32 would take registers.
    """
    if ON_TENSOR_CORES:
        # (COLUMNS, BLOCK_D)
        columns = tl.where((tl.arange(0, COLUMNS) == 0)[:, None], vector[None, :], 0.0).to(tile.dtype)
        products = tl.sum(dot(tile, tl.trans(columns)), 1)
    else:
        products = sum_of_products(tile.to(tl.float32), vector[None, :], 1)
    return products


@triton.jit
def class_sums(tile, weights, ON_TENSOR_CORES: tl.constexpr):
    """The sum of the tokens of a tile, each times its weight, as float32 `(BLOCK_D,)`; see `class_products`."""
    if ON_TENSOR_CORES:
        # (tokens, COLUMNS)
        columns = tl.where((tl.arange(0, COLUMNS) == 0)[None, :], weights[:, None], 0.0).to(tile.dtype)
        sums = tl.sum(dot(tl.trans(tile), columns), 1)
    else:
        sums = sum_of_products(weights[:, None], tile.to(tl.float32), 0)
    return sums


@triton.jit
def load_keys(
    keys,
    offs_k,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    EVEN: tl.constexpr,
    SHARED: tl.constexpr,
):
    """The tiles of keys and values, which may be one: `keys` are their pointers and their strides."""
    k_ptr, v_ptr, k_strides, v_strides = keys
    offs_d = tl.arange(0, BLOCK_D)
    # (BLOCK_K, BLOCK_D)
    k = load_tile(k_ptr, offs_k, offs_d, k_strides[2], k_strides[4], KEYS, HEAD_DIM, EVEN)
    if SHARED:
        v = k
    else:
        v = load_tile(v_ptr, offs_k, offs_d, v_strides[2], v_strides[4], KEYS, HEAD_DIM, EVEN)
    return k, v


@triton.jit
def attention_and_gradient(
    queries,
    k,
    v,
    keys,
    offs_k,
    valid,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The attention of queries to the keys `offs_k`, zero to none, and its gradient.

    Queries are two tiles, the statistics of each query, and the sources of the tiles as for `inner_products`;
    keys as for `load_keys`; `valid` of the `KEYS` count, None for all.
    """
    q, grad, highest, factor, q_source, grad_source = queries
    k_ptr, v_ptr, k_strides, v_strides = keys
    k_source, v_source = (k_ptr, offs_k, k_strides, KEYS), (v_ptr, offs_k, v_strides, KEYS)
    # (BLOCK_Q, BLOCK_K)
    scores = inner_products(q, k, q_source, k_source, HEAD_DIM, BLOCK_D, BLOCK_C)
    p = weights_of(scores, highest[:, None], factor[:, None])
    if valid is not None:
        p = tl.where((offs_k < valid)[None, :], p, 0.0)
    elif KEYS % BLOCK_K != 0:
        p = tl.where((offs_k < KEYS)[None, :], p, 0.0)
    dp = inner_products(grad, v, grad_source, v_source, HEAD_DIM, BLOCK_D, BLOCK_C)
    return p, dp


@triton.jit
def axis_attention_bwd_query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cls_k_ptr,
    cls_v_ptr,
    valid_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    grad_q_ptr,
    grad_cls_k_ptr,
    grad_cls_v_ptr,
    q_strides,
    k_strides,
    v_strides,
    cls_k_strides,
    cls_v_strides,
    grad_strides,
    lse_strides,
    delta_strides,
    grad_q_strides,
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
    """One program: the gradients of `BLOCK_Q` queries of one head, or `TOGETHER` of every head that shares keys, and Δ.

    Keys that one tile holds are then loaded once for all these heads. Strides as in the forward kernel, of Δ
    `(batch, row, token, head)`. What the queries give the class token's key and value is `(programs, HEAD_DIM)`, one
    where they are one tensor.
    """
    TILES: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    MEMBERS: tl.constexpr = GROUP if TOGETHER else 1
    EVEN_Q: tl.constexpr = QUERIES % BLOCK_Q == 0 and HEAD_DIM == BLOCK_D
    EVEN_K: tl.constexpr = KEYS % BLOCK_K == 0 and HEAD_DIM == BLOCK_D
    RESIDENT: tl.constexpr = KEYS <= BLOCK_K
    HELD: tl.constexpr = MEMBERS > 1 and RESIDENT
    ON_TENSOR_CORES: tl.constexpr = MEMBERS > 1 and q_ptr.dtype.element_ty.primitive_bitwidth == 16
    pid = tl.program_id(0)
    tile, first = pid % TILES, (pid // TILES) % (HEADS // MEMBERS) * MEMBERS
    key_head = (first // GROUP).to(tl.int64)
    sequence = pid // (TILES * (HEADS // MEMBERS))
    batch, row = (sequence // rows).to(tl.int64), (sequence % rows).to(tl.int64)
    q_ptr += batch * q_strides[0] + row * q_strides[1]
    k_ptr += batch * k_strides[0] + row * k_strides[1] + key_head * k_strides[3]
    v_ptr += batch * v_strides[0] + row * v_strides[1] + key_head * v_strides[3]
    grad_ptr += batch * grad_strides[0] + row * grad_strides[1]
    grad_q_ptr += batch * grad_q_strides[0] + row * grad_q_strides[1]
    lse_ptr += batch * lse_strides[0] + row * lse_strides[1]
    delta_ptr += batch * delta_strides[0] + row * delta_strides[1]
    cls_k_ptr += batch * cls_k_strides[0] + key_head * cls_k_strides[1]
    cls_v_ptr += batch * cls_v_strides[0] + key_head * cls_v_strides[1]

    offs_q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_k = tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    valid = load_padded(valid_ptr, batch)
    keys = (k_ptr, v_ptr, k_strides, v_strides)
    if HELD:
        # (BLOCK_K, BLOCK_D)
        k, v = load_keys(keys, offs_k, BLOCK_D, KEYS, HEAD_DIM, EVEN_K, SHARED)
    # (BLOCK_D,)
    grad_cls_k = tl.zeros((BLOCK_D,), tl.float32)
    grad_cls_v = tl.zeros((BLOCK_D,), tl.float32)
    # What depends on no head is computed for each anew: held all the time it would not fit the registers.
    for member in tl.range(0, MEMBERS, disable_licm=True):
        head = (first + member).to(tl.int64)
        head_q_ptr, head_grad_ptr = q_ptr + head * q_strides[3], grad_ptr + head * grad_strides[3]
        # (BLOCK_D,)
        cls_k = load_vector(cls_k_ptr, offs_d, cls_k_strides[2], HEAD_DIM, 0.0)
        cls_v = load_vector(cls_v_ptr, offs_d, cls_v_strides[2], HEAD_DIM, 0.0)
        # (BLOCK_Q,)
        offs_lse = head * lse_strides[3] + offs_q.to(tl.int64) * lse_strides[2]
        highest, factor = load_lse(lse_ptr, offs_lse, lse_strides[4], offs_q < QUERIES)
        # (BLOCK_Q, BLOCK_D)
        q = load_tile(head_q_ptr, offs_q, offs_d, q_strides[2], q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
        grad = load_tile(head_grad_ptr, offs_q, offs_d, grad_strides[2], grad_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
        # (BLOCK_Q,)
        cls_p = weights_of(class_products(q, cls_k, ON_TENSOR_CORES), highest, factor)
        cls_dp = class_products(grad, cls_v, ON_TENSOR_CORES)
        q_source, grad_source = (head_q_ptr, offs_q, q_strides, QUERIES), (head_grad_ptr, offs_q, grad_strides, QUERIES)
        queries = (q, grad, highest, factor, q_source, grad_source)
        delta = cls_p * cls_dp
        if RESIDENT:
            if not HELD:
                k, v = load_keys(keys, offs_k, BLOCK_D, KEYS, HEAD_DIM, EVEN_K, SHARED)
            p, dp = attention_and_gradient(
                queries, k, v, keys, offs_k, valid, KEYS, HEAD_DIM, BLOCK_D, BLOCK_K, BLOCK_C
            )
            delta += sum_of_products(p, dp, 1)
        else:
            for start in range(0, KEYS, BLOCK_K):
                k, v = load_keys(keys, start + offs_k, BLOCK_D, KEYS, HEAD_DIM, EVEN_K, SHARED)
                p, dp = attention_and_gradient(
                    queries, k, v, keys, start + offs_k, valid, KEYS, HEAD_DIM, BLOCK_D, BLOCK_K, BLOCK_C
                )
                delta += sum_of_products(p, dp, 1)
        offs_delta = head * delta_strides[3] + offs_q.to(tl.int64) * delta_strides[2]
        tl.store(delta_ptr + offs_delta, delta, mask=offs_q < QUERIES)
        cls_ds = cls_p * (cls_dp - delta)
        # (BLOCK_D,)
        cls_k = load_vector(cls_k_ptr, offs_d, cls_k_strides[2], HEAD_DIM, 0.0)
        # (BLOCK_Q, BLOCK_D)
        if RESIDENT:
            ds = p * (dp - delta[:, None])
            grad_q = dot(ds.to(k.dtype), k)
            grad_q += cls_ds[:, None] * cls_k[None, :]
        else:
            grad_q = cls_ds[:, None] * cls_k[None, :]
            for start in range(0, KEYS, BLOCK_K):
                k, v = load_keys(keys, start + offs_k, BLOCK_D, KEYS, HEAD_DIM, EVEN_K, SHARED)
                p, dp = attention_and_gradient(
                    queries, k, v, keys, start + offs_k, valid, KEYS, HEAD_DIM, BLOCK_D, BLOCK_K, BLOCK_C
                )
                ds = p * (dp - delta[:, None])
                grad_q = dot(ds.to(k.dtype), k, grad_q)
        out_ptr = grad_q_ptr + head * grad_q_strides[3]
        store_tile(out_ptr, grad_q, offs_q, offs_d, grad_q_strides[2], grad_q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
        if not ON_TENSOR_CORES:
            # (BLOCK_Q, BLOCK_D), once more: held all the time they would not fit the registers
            q = load_tile(head_q_ptr, offs_q, offs_d, q_strides[2], q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
            grad = load_tile(head_grad_ptr, offs_q, offs_d, grad_strides[2], grad_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
        # (BLOCK_D,)
        grad_cls_k += class_sums(q, cls_ds, ON_TENSOR_CORES)
        grad_cls_v += class_sums(grad, cls_p, ON_TENSOR_CORES)
    offs_partial = pid.to(tl.int64) * HEAD_DIM + offs_d
    if SHARED:
        tl.store(grad_cls_k_ptr + offs_partial, grad_cls_k + grad_cls_v, mask=offs_d < HEAD_DIM)
    else:
        tl.store(grad_cls_k_ptr + offs_partial, grad_cls_k, mask=offs_d < HEAD_DIM)
        tl.store(grad_cls_v_ptr + offs_partial, grad_cls_v, mask=offs_d < HEAD_DIM)
