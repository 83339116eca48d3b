"""Kernels of the kinds that others have published figures of, to forecast them as this package's own are.

They are plain forms of what those figures are of: attention with a running softmax, a product in tiles, normalization
of rows. None of them is used by a model.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from septr_fast.kernels.launch import Config, Launch, ceil_div


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, scale, length, HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One program: the attention of `BLOCK_Q` queries of one head to all keys, whose number the block divides."""
    tiles = length // BLOCK_Q
    tile, head = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    offs_d = tl.arange(0, HEAD_DIM)
    offs_q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    start = head * length * HEAD_DIM
    # (BLOCK_Q, HEAD_DIM)
    q = tl.load(q_ptr + start + offs_q[:, None] * HEAD_DIM + offs_d[None, :])
    highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    out = tl.zeros((BLOCK_Q, HEAD_DIM), tl.float32)
    for first in range(0, length, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        # (HEAD_DIM, BLOCK_K)
        k = tl.load(k_ptr + start + offs_k[None, :] * HEAD_DIM + offs_d[:, None])
        # (BLOCK_Q, BLOCK_K)
        scores = tl.dot(q, k)
        largest = tl.maximum(highest, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - largest[:, None])
        correction = tl.exp2(highest - largest)
        total = total * correction + tl.sum(p, 1)
        # (BLOCK_K, HEAD_DIM)
        v = tl.load(v_ptr + start + offs_k[:, None] * HEAD_DIM + offs_d[None, :])
        out = tl.dot(p.to(v.dtype), v, out * correction[:, None])
        highest = largest
    out = (out / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start + offs_q[:, None] * HEAD_DIM + offs_d[None, :], out)


@triton.jit
def product_kernel(
    a_ptr, b_ptr, c_ptr, rows, columns, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One program: a tile of `a b`; groups of eight rows of tiles share what they read of `b`."""
    tiles_m, tiles_n = rows // BLOCK_M, columns // BLOCK_N
    group, inside = tl.program_id(0) // (8 * tiles_n), tl.program_id(0) % (8 * tiles_n)
    height = min(tiles_m - 8 * group, 8)
    offs_m = (8 * group + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (inside // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    a_ptrs = a_ptr + offs_m[:, None] * depth + offs_d[None, :]
    b_ptrs = b_ptr + offs_d[:, None] * columns + offs_n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, depth, BLOCK_D):
        total = tl.dot(tl.load(a_ptrs), tl.load(b_ptrs), total)
        a_ptrs += BLOCK_D
        b_ptrs += BLOCK_D * columns
    tl.store(c_ptr + offs_m[:, None] * columns + offs_n[None, :], total.to(c_ptr.dtype.element_ty))


@triton.jit
def layer_norm_kernel(x_ptr, weight_ptr, bias_ptr, out_ptr, width, eps, BLOCK: tl.constexpr):
    """One program: one row, normalized, times a weight and plus a bias; a block holds the row."""
    start = tl.program_id(0).to(tl.int64) * width
    offs = tl.arange(0, BLOCK)
    inside = offs < width
    # (BLOCK,)
    x = tl.load(x_ptr + start + offs, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    weight = tl.load(weight_ptr + offs, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + offs, mask=inside, other=0.0)
    tl.store(out_ptr + start + offs, centred * factor * weight + bias, mask=inside)


def attention(heads: int, length: int, head_dim: int, tile: tuple[int, int], warps: int, stages: int) -> Launch:
    """Attention of `heads` sequences of `length` tokens in float16, a tile of queries and keys."""
    x = torch.empty(heads, length, head_dim, dtype=torch.float16, device="meta")
    out = torch.empty_like(x)
    arguments: dict[str, Any] = {"q_ptr": x, "k_ptr": torch.empty_like(x), "v_ptr": torch.empty_like(x), "out_ptr": out}
    arguments |= {"scale": 0.125, "length": length, "HEAD_DIM": head_dim}
    config = Config({"BLOCK_Q": tile[0], "BLOCK_K": tile[1]}, warps, stages)
    return _launch("attention", attention_kernel, heads * length // tile[0], arguments, config, 4 * x.numel() * length)


def product(rows: int, columns: int, depth: int, tile: tuple[int, int, int], warps: int, stages: int) -> Launch:
    """A product in float16, a tile of rows, columns and depth."""
    a, b, c = (
        torch.empty(*shape, dtype=torch.float16, device="meta")
        for shape in ((rows, depth), (depth, columns), (rows, columns))
    )
    arguments: dict[str, Any] = {"a_ptr": a, "b_ptr": b, "c_ptr": c, "rows": rows, "columns": columns, "depth": depth}
    config = Config({"BLOCK_M": tile[0], "BLOCK_N": tile[1], "BLOCK_D": tile[2]}, warps, stages)
    programs = ceil_div(rows, tile[0]) * ceil_div(columns, tile[1])
    return _launch("product", product_kernel, programs, arguments, config, 2 * rows * columns * depth)


def layer_norm(rows: int, width: int, warps: int) -> Launch:
    """Normalization of rows in float16 with weight and bias."""
    x = torch.empty(rows, width, dtype=torch.float16, device="meta")
    weight = torch.empty(width, dtype=torch.float16, device="meta")
    arguments: dict[str, Any] = {
        "x_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": torch.empty_like(weight),
        "out_ptr": torch.empty_like(x),
    }
    arguments |= {"width": width, "eps": 1e-5}
    config = Config({"BLOCK": triton.next_power_of_2(width)}, warps)
    return _launch("layer normalization", layer_norm_kernel, rows, arguments, config, 0)


def _launch(name: str, kernel: Any, programs: int, arguments: Any, config: Config, flops: int) -> Launch:
    return Launch(name, kernel, programs, arguments, config, flops, flops)
