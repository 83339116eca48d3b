"""The gradients of keys and values, and of values that are the keys: the sums over queries of `attention_backward`."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import inner_products, load_tile, load_vector, store_tile
from .attention_backward import load_lse, load_padded, weights_of
from .rounding import dot


@triton.jit
def add_key_gradients(p, dp, q, grad, delta, grad_k, grad_v, CHAINED: tl.constexpr):
    """Add what the queries of one tile contribute to the gradients of a tile of keys and values, or to their sum.

    Shapes: the attention `p` and its gradient `dp` `(BLOCK_K, BLOCK_Q)`, queries `(BLOCK_Q, BLOCK_D)`, `delta`
    `(BLOCK_Q,)`. `CHAINED`, all is added to `grad_k`.
    """
    # (BLOCK_K, BLOCK_Q)
    ds = p * (dp - delta[None, :])
    # (BLOCK_K, BLOCK_D)
    grad_k = dot(ds.to(q.dtype), q, grad_k)
    if CHAINED:
        grad_k = dot(p.to(q.dtype), grad, grad_k)
    else:
        grad_v = dot(p.to(q.dtype), grad, grad_v)
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
    cls_scores = inner_products(k, cls_q, k_source, cls_q_source, HEAD_DIM, BLOCK_D, BLOCK_C)
    cls_dp = inner_products(v, cls_grad, v_source, cls_grad_source, HEAD_DIM, BLOCK_D, BLOCK_C)
    cls_p = weights_of(cls_scores, cls_highest[None, :], cls_factor[None, :])
    valid = load_padded(valid_ptr, batch)
    if valid is not None:
        cls_p = tl.where((offs_k < valid)[:, None], cls_p, 0.0)
    grad_k, grad_v = add_key_gradients(cls_p, cls_dp, cls_q, cls_grad, cls_delta, grad_k, grad_v, CHAINED)
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
        scores = inner_products(k, q, k_source, q_source, HEAD_DIM, BLOCK_D, BLOCK_C)
        dp = inner_products(v, grad, v_source, grad_source, HEAD_DIM, BLOCK_D, BLOCK_C)
        p = weights_of(scores, highest[None, :], factor[None, :])
        if valid is not None:
            p = tl.where((offs_k < valid)[:, None], p, 0.0)
        grad_k, grad_v = add_key_gradients(p, dp, q, grad, delta, grad_k, grad_v, CHAINED)
    if SHARED and not CHAINED:
        grad_k += grad_v
    store_tile(grad_k_ptr, grad_k, offs_k, offs_d, grad_k_strides[2], grad_k_strides[4], LENGTH, HEAD_DIM, EVEN_K)
    if not SHARED:
        store_tile(grad_v_ptr, grad_v, offs_k, offs_d, grad_v_strides[2], grad_v_strides[4], LENGTH, HEAD_DIM, EVEN_K)
