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

from .attention import LOG2E, inner_products, load_source, load_tile, load_vector, store_tile
from .rounding import dot, sum_of_products


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
def attention_and_gradient(
    queries,
    keys,
    start,
    valid,
    KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SHARED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """The attention of queries to the block of keys from `start` on, zero to none, its gradient, and the keys.

    Queries are two tiles, the statistics of each query, and the sources of the tiles as for `inner_products`;
    keys are the pointers of keys and values and their strides; `valid` of the `KEYS` count, None for all.
    """
    q, grad, highest, factor, q_source, grad_source = queries
    k_ptr, v_ptr, k_strides, v_strides = keys
    offs_k = start + tl.arange(0, BLOCK_K)
    k_source, v_source = (k_ptr, offs_k, k_strides, KEYS), (v_ptr, offs_k, v_strides, KEYS)
    offs_d = tl.arange(0, BLOCK_D)
    EVEN: tl.constexpr = KEYS % BLOCK_K == 0 and HEAD_DIM == BLOCK_D
    # (BLOCK_K, BLOCK_D)
    k = load_source(k_source, offs_d, KEYS, HEAD_DIM, EVEN)
    if SHARED:
        v = k
    else:
        v = load_source(v_source, offs_d, KEYS, HEAD_DIM, EVEN)
    # (BLOCK_Q, BLOCK_K)
    scores = inner_products(q, k, q_source, k_source, HEAD_DIM, BLOCK_D, BLOCK_C, INPUT_PRECISION)
    p = weights_of(scores, highest[:, None], factor[:, None])
    if valid is not None:
        p = tl.where((offs_k < valid)[None, :], p, 0.0)
    elif KEYS % BLOCK_K != 0:
        p = tl.where((offs_k < KEYS)[None, :], p, 0.0)
    dp = inner_products(grad, v, grad_source, v_source, HEAD_DIM, BLOCK_D, BLOCK_C, INPUT_PRECISION)
    return p, dp, k


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
    INPUT_PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: the gradient of `BLOCK_Q` queries, their Δ, and their part of the class token's key and value.

    Strides as in the forward kernel, of Δ `(batch, row, token, head)`. The parts of the class token's key and value
    are `(programs, HEAD_DIM)`, one where they are one tensor.
    """
    TILES: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    EVEN_Q: tl.constexpr = QUERIES % BLOCK_Q == 0 and HEAD_DIM == BLOCK_D
    pid = tl.program_id(0)
    tile, head = pid % TILES, (pid // TILES) % HEADS
    sequence = pid // (TILES * HEADS)
    batch, row = (sequence // rows).to(tl.int64), (sequence % rows).to(tl.int64)
    head, key_head = head.to(tl.int64), (head // GROUP).to(tl.int64)
    q_ptr += batch * q_strides[0] + row * q_strides[1] + head * q_strides[3]
    k_ptr += batch * k_strides[0] + row * k_strides[1] + key_head * k_strides[3]
    v_ptr += batch * v_strides[0] + row * v_strides[1] + key_head * v_strides[3]
    grad_ptr += batch * grad_strides[0] + row * grad_strides[1] + head * grad_strides[3]
    grad_q_ptr += batch * grad_q_strides[0] + row * grad_q_strides[1] + head * grad_q_strides[3]
    lse_ptr += batch * lse_strides[0] + row * lse_strides[1] + head * lse_strides[3]
    delta_ptr += batch * delta_strides[0] + row * delta_strides[1] + head * delta_strides[3]
    cls_k_ptr += batch * cls_k_strides[0] + key_head * cls_k_strides[1]
    cls_v_ptr += batch * cls_v_strides[0] + key_head * cls_v_strides[1]

    offs_q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    # (BLOCK_D,)
    cls_k = load_vector(cls_k_ptr, offs_d, cls_k_strides[2], HEAD_DIM, 0.0)
    cls_v = load_vector(cls_v_ptr, offs_d, cls_v_strides[2], HEAD_DIM, 0.0)
    # (BLOCK_Q,)
    offs_lse = offs_q.to(tl.int64) * lse_strides[2]
    highest, factor = load_lse(lse_ptr, offs_lse, lse_strides[4], offs_q < QUERIES)
    # (BLOCK_Q, BLOCK_D)
    q = load_tile(q_ptr, offs_q, offs_d, q_strides[2], q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
    grad = load_tile(grad_ptr, offs_q, offs_d, grad_strides[2], grad_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
    # (BLOCK_Q,)
    cls_p = weights_of(sum_of_products(q.to(tl.float32), cls_k[None, :], 1), highest, factor)
    cls_dp = sum_of_products(grad.to(tl.float32), cls_v[None, :], 1)
    q_source, grad_source = (q_ptr, offs_q, q_strides, QUERIES), (grad_ptr, offs_q, grad_strides, QUERIES)
    queries, keys = (q, grad, highest, factor, q_source, grad_source), (k_ptr, v_ptr, k_strides, v_strides)
    delta = cls_p * cls_dp
    valid = load_padded(valid_ptr, batch)
    if KEYS <= BLOCK_K:
        p, dp, k = attention_and_gradient(
            queries, keys, 0, valid, KEYS, HEAD_DIM, BLOCK_D, BLOCK_K, BLOCK_C, SHARED, INPUT_PRECISION
        )
        delta += sum_of_products(p, dp, 1)
    else:
        for start in range(0, KEYS, BLOCK_K):
            p, dp, _ = attention_and_gradient(
                queries, keys, start, valid, KEYS, HEAD_DIM, BLOCK_D, BLOCK_K, BLOCK_C, SHARED, INPUT_PRECISION
            )
            delta += sum_of_products(p, dp, 1)
    tl.store(delta_ptr + offs_q.to(tl.int64) * delta_strides[2], delta, mask=offs_q < QUERIES)
    cls_ds = cls_p * (cls_dp - delta)
    # (BLOCK_D,)
    cls_k = load_vector(cls_k_ptr, offs_d, cls_k_strides[2], HEAD_DIM, 0.0)
    # (BLOCK_Q, BLOCK_D)
    if KEYS <= BLOCK_K:
        ds = p * (dp - delta[:, None])
        grad_q = dot(ds.to(k.dtype), k, input_precision=INPUT_PRECISION)
        grad_q += cls_ds[:, None] * cls_k[None, :]
    else:
        grad_q = cls_ds[:, None] * cls_k[None, :]
        for start in range(0, KEYS, BLOCK_K):
            p, dp, k = attention_and_gradient(
                queries, keys, start, valid, KEYS, HEAD_DIM, BLOCK_D, BLOCK_K, BLOCK_C, SHARED, INPUT_PRECISION
            )
            ds = p * (dp - delta[:, None])
            grad_q = dot(ds.to(k.dtype), k, grad_q, input_precision=INPUT_PRECISION)
    store_tile(grad_q_ptr, grad_q, offs_q, offs_d, grad_q_strides[2], grad_q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
    # (BLOCK_Q, BLOCK_D), once more: held all the time they would not fit the registers
    q = load_tile(q_ptr, offs_q, offs_d, q_strides[2], q_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
    grad = load_tile(grad_ptr, offs_q, offs_d, grad_strides[2], grad_strides[4], QUERIES, HEAD_DIM, EVEN_Q)
    # (BLOCK_D,)
    grad_cls_k = sum_of_products(cls_ds[:, None], q.to(tl.float32), 0)
    grad_cls_v = sum_of_products(cls_p[:, None], grad.to(tl.float32), 0)
    offs_partial = pid.to(tl.int64) * HEAD_DIM + offs_d
    if SHARED:
        tl.store(grad_cls_k_ptr + offs_partial, grad_cls_k + grad_cls_v, mask=offs_d < HEAD_DIM)
    else:
        tl.store(grad_cls_k_ptr + offs_partial, grad_cls_k, mask=offs_d < HEAD_DIM)
        tl.store(grad_cls_v_ptr + offs_partial, grad_cls_v, mask=offs_d < HEAD_DIM)


@triton.jit
def add_key_gradients(p, dp, q, grad, delta, grad_k, grad_v, CHAINED: tl.constexpr, INPUT_PRECISION: tl.constexpr):
    """Add what the queries of one tile contribute to the gradients of a tile of keys and values, or to their sum.

    Shapes: the attention `p` and its gradient `dp` `(BLOCK_K, BLOCK_Q)`, queries `(BLOCK_Q, BLOCK_D)`, `delta`
    `(BLOCK_Q,)`. `CHAINED`, all is added to `grad_k`.
    """
    # (BLOCK_K, BLOCK_Q)
    ds = p * (dp - delta[None, :])
    # (BLOCK_K, BLOCK_D)
    grad_k = dot(ds.to(q.dtype), q, grad_k, input_precision=INPUT_PRECISION)
    if CHAINED:
        grad_k = dot(p.to(q.dtype), grad, grad_k, input_precision=INPUT_PRECISION)
    else:
        grad_v = dot(p.to(q.dtype), grad, grad_v, input_precision=INPUT_PRECISION)
    return grad_k, grad_v


@triton.jit
def axis_attention_bwd_key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    valid_ptr,
    cls_q_ptr,
    grad_ptr,
    cls_grad_ptr,
    lse_ptr,
    cls_lse_ptr,
    delta_ptr,
    cls_delta_ptr,
    grad_k_ptr,
    grad_v_ptr,
    q_strides,
    k_strides,
    v_strides,
    cls_q_strides,
    grad_strides,
    cls_grad_strides,
    lse_strides,
    cls_lse_strides,
    delta_strides,
    cls_delta_strides,
    grad_k_strides,
    grad_v_strides,
    rows,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    LENGTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    SHARED: tl.constexpr,
    CHAINED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: the gradients of `BLOCK_K` keys and values, from all queries of their heads in one order.

    Strides as in the forward kernel, the class token's queries `(batch, row, GROUP, KEY_HEADS, dim)`. Of values that
    are the keys the sum of both gradients: `CHAINED` in one accumulator, otherwise in two that are added up at the end.
    """
    KEY_TILES: tl.constexpr = (LENGTH + BLOCK_K - 1) // BLOCK_K
    QUERY_TILES: tl.constexpr = (LENGTH + BLOCK_Q - 1) // BLOCK_Q
    EVEN_Q: tl.constexpr = LENGTH % BLOCK_Q == 0 and HEAD_DIM == BLOCK_D
    EVEN_K: tl.constexpr = LENGTH % BLOCK_K == 0 and HEAD_DIM == BLOCK_D
    pid = tl.program_id(0)
    tile, key_head = pid % KEY_TILES, ((pid // KEY_TILES) % KEY_HEADS).to(tl.int64)
    sequence = pid // (KEY_TILES * KEY_HEADS)
    batch, row = (sequence // rows).to(tl.int64), (sequence % rows).to(tl.int64)
    q_ptr += batch * q_strides[0] + row * q_strides[1]
    k_ptr += batch * k_strides[0] + row * k_strides[1] + key_head * k_strides[3]
    v_ptr += batch * v_strides[0] + row * v_strides[1] + key_head * v_strides[3]
    grad_ptr += batch * grad_strides[0] + row * grad_strides[1]
    lse_ptr += batch * lse_strides[0] + row * lse_strides[1]
    delta_ptr += batch * delta_strides[0] + row * delta_strides[1]
    cls_q_ptr += batch * cls_q_strides[0] + row * cls_q_strides[1] + key_head * cls_q_strides[3]
    cls_grad_ptr += batch * cls_grad_strides[0] + row * cls_grad_strides[1] + key_head * cls_grad_strides[3]
    cls_lse_ptr += batch * cls_lse_strides[0] + row * cls_lse_strides[1] + key_head * cls_lse_strides[3]
    cls_delta_ptr += batch * cls_delta_strides[0] + row * cls_delta_strides[1] + key_head * cls_delta_strides[3]
    grad_k_ptr += batch * grad_k_strides[0] + row * grad_k_strides[1] + key_head * grad_k_strides[3]
    grad_v_ptr += batch * grad_v_strides[0] + row * grad_v_strides[1] + key_head * grad_v_strides[3]

    offs_k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    offs_g = tl.arange(0, BLOCK_G)
    # (BLOCK_K, BLOCK_D)
    k = load_tile(k_ptr, offs_k, offs_d, k_strides[2], k_strides[4], LENGTH, HEAD_DIM, EVEN_K)
    if SHARED:
        v = k
    else:
        v = load_tile(v_ptr, offs_k, offs_d, v_strides[2], v_strides[4], LENGTH, HEAD_DIM, EVEN_K)
    # (BLOCK_G, BLOCK_D)
    cls_q = load_tile(cls_q_ptr, offs_g, offs_d, cls_q_strides[2], cls_q_strides[4], GROUP, HEAD_DIM, False)
    cls_grad = load_tile(cls_grad_ptr, offs_g, offs_d, cls_grad_strides[2], cls_grad_strides[4], GROUP, HEAD_DIM, False)
    # (BLOCK_G,)
    offs_cls_lse = offs_g.to(tl.int64) * cls_lse_strides[2]
    cls_highest, cls_factor = load_lse(cls_lse_ptr, offs_cls_lse, cls_lse_strides[4], offs_g < GROUP)
    cls_delta = load_vector(cls_delta_ptr, offs_g, cls_delta_strides[2], GROUP, 0.0)
    # (BLOCK_K, BLOCK_D)
    grad_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    grad_v = grad_k
    # (BLOCK_K, BLOCK_G)
    k_source, v_source = (k_ptr, offs_k, k_strides, LENGTH), (v_ptr, offs_k, v_strides, LENGTH)
    cls_q_source, cls_grad_source = (
        (cls_q_ptr, offs_g, cls_q_strides, GROUP),
        (cls_grad_ptr, offs_g, cls_grad_strides, GROUP),
    )
    cls_scores = inner_products(k, cls_q, k_source, cls_q_source, HEAD_DIM, BLOCK_D, BLOCK_C, INPUT_PRECISION)
    cls_dp = inner_products(v, cls_grad, v_source, cls_grad_source, HEAD_DIM, BLOCK_D, BLOCK_C, INPUT_PRECISION)
    cls_p = weights_of(cls_scores, cls_highest[None, :], cls_factor[None, :])
    valid = load_padded(valid_ptr, batch)
    if valid is not None:
        cls_p = tl.where((offs_k < valid)[:, None], cls_p, 0.0)
    grad_k, grad_v = add_key_gradients(
        cls_p, cls_dp, cls_q, cls_grad, cls_delta, grad_k, grad_v, CHAINED, INPUT_PRECISION
    )
    for step in range(0, GROUP * QUERY_TILES):
        head = key_head * GROUP + step // QUERY_TILES
        offs_q = (step % QUERY_TILES) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        # (BLOCK_Q, BLOCK_D)
        head_q_ptr, head_grad_ptr = q_ptr + head * q_strides[3], grad_ptr + head * grad_strides[3]
        q = load_tile(head_q_ptr, offs_q, offs_d, q_strides[2], q_strides[4], LENGTH, HEAD_DIM, EVEN_Q)
        grad = load_tile(head_grad_ptr, offs_q, offs_d, grad_strides[2], grad_strides[4], LENGTH, HEAD_DIM, EVEN_Q)
        # (BLOCK_Q,)
        offs_lse = head * lse_strides[3] + offs_q.to(tl.int64) * lse_strides[2]
        highest, factor = load_lse(lse_ptr, offs_lse, lse_strides[4], offs_q < LENGTH)
        delta = load_vector(delta_ptr + head * delta_strides[3], offs_q, delta_strides[2], LENGTH, 0.0)
        # (BLOCK_K, BLOCK_Q)
        q_source, grad_source = (head_q_ptr, offs_q, q_strides, LENGTH), (head_grad_ptr, offs_q, grad_strides, LENGTH)
        scores = inner_products(k, q, k_source, q_source, HEAD_DIM, BLOCK_D, BLOCK_C, INPUT_PRECISION)
        dp = inner_products(v, grad, v_source, grad_source, HEAD_DIM, BLOCK_D, BLOCK_C, INPUT_PRECISION)
        p = weights_of(scores, highest[None, :], factor[None, :])
        if valid is not None:
            p = tl.where((offs_k < valid)[:, None], p, 0.0)
        grad_k, grad_v = add_key_gradients(p, dp, q, grad, delta, grad_k, grad_v, CHAINED, INPUT_PRECISION)
    if SHARED and not CHAINED:
        grad_k += grad_v
    store_tile(grad_k_ptr, grad_k, offs_k, offs_d, grad_k_strides[2], grad_k_strides[4], LENGTH, HEAD_DIM, EVEN_K)
    if not SHARED:
        store_tile(grad_v_ptr, grad_v, offs_k, offs_d, grad_v_strides[2], grad_v_strides[4], LENGTH, HEAD_DIM, EVEN_K)
