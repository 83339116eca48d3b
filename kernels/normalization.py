"""Positions added, normalization without its affine part, and the backward pass of both.

Of every token of a grid seen as `(batch, rows, length, dim)`, in any strides:

    y = x + pos,   r = 1 / sqrt(var(y) + eps),   n(y) = (y - mean(y)) r.

Nothing is saved but x and pos. With g the gradient of n(y), the backward pass computes y, r and n(y)
again and gives

    dx = d_residual + r (g - mean(g) - n(y) mean(g n(y))),   dpos = Σ dx over batch and rows,

where `d_residual` is what reaches x past the normalization. The sum over sequences goes through a buffer of
fixed layout, one part for each slice of the sequences, so every run gives the same bits.

Statistics and sums are float32, the variance from the centred values: where it overflows, from values about 1e19 on,
n(y) is NaN, as PyTorch's is on a CPU, and not the zero that 1 / sqrt(infinity) would make of it. Tokens number less
than 2³¹.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .rounding import sum_of_products


@triton.jit
def token_offsets(tokens, rows, length, strides):
    """Where `tokens`, counted through `(batch, rows, length)`, lie in a tensor of `strides`, in int64."""
    sequence, position = tokens // length, tokens % length
    sample, row = (sequence // rows).to(tl.int64), (sequence % rows).to(tl.int64)
    return sample * strides[0] + row * strides[1] + position.to(tl.int64) * strides[2]


@triton.jit
def load_tokens(ptr, offsets, offs_d, stride_d, mask_m, WIDTH: tl.constexpr):
    """Load tokens at `offsets` as float32, zero where masked and beyond `WIDTH`."""
    ptrs = ptr + offsets[:, None] + offs_d.to(tl.int64)[None, :] * stride_d
    return tl.load(ptrs, mask=mask_m[:, None] & (offs_d < WIDTH)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_tokens(ptr, tile, offsets, offs_d, stride_d, mask_m, WIDTH: tl.constexpr):
    """Store tokens at `offsets` in the dtype of `ptr`."""
    ptrs = ptr + offsets[:, None] + offs_d.to(tl.int64)[None, :] * stride_d
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=mask_m[:, None] & (offs_d < WIDTH)[None, :])


@triton.jit
def standardize(y, offs_d, eps, WIDTH: tl.constexpr):
    """The tokens `y` normalized, zero beyond `WIDTH`, and their factors r."""
    centred = tl.where((offs_d < WIDTH)[None, :], y - (tl.sum(y, 1) / WIDTH)[:, None], 0.0)
    variance = sum_of_products(centred, centred, 1) / WIDTH
    # variance - variance is zero, or NaN where the variance is infinite
    r = tl.rsqrt(variance + eps + (variance - variance))
    return centred * r[:, None], r


@triton.jit
def standardize_backward(grad_hat, hat, r, WIDTH: tl.constexpr):
    """The gradient of tokens from that of the tokens normalized, which is zero beyond `WIDTH`."""
    mean = tl.sum(grad_hat, 1) / WIDTH
    slope = sum_of_products(grad_hat, hat, 1) / WIDTH
    return r[:, None] * (grad_hat - mean[:, None] - hat * slope[:, None])


@triton.jit
def normalize_kernel(
    x_ptr,
    pos_ptr,
    hat_ptr,
    x_strides,
    pos_strides,
    tokens,
    rows,
    length,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Normalize one tile of tokens."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < tokens
    # (BLOCK_M, BLOCK_D)
    y = load_tokens(x_ptr, token_offsets(offs_m, rows, length, x_strides), offs_d, x_strides[3], mask_m, WIDTH)
    if pos_ptr is not None:
        offs_pos = (offs_m % length).to(tl.int64) * pos_strides[0]
        y += load_tokens(pos_ptr, offs_pos, offs_d, pos_strides[1], mask_m, WIDTH)
    hat, _ = standardize(y, offs_d, eps, WIDTH)
    store_tokens(hat_ptr, hat, offs_m.to(tl.int64) * WIDTH, offs_d, 1, mask_m, WIDTH)


@triton.jit
def normalize_bwd_kernel(
    grad_hat_ptr,
    x_ptr,
    pos_ptr,
    residual_grad_ptr,
    grad_x_ptr,
    partial_ptr,
    grad_hat_strides,
    x_strides,
    pos_strides,
    residual_grad_strides,
    grad_x_strides,
    sequences,
    rows,
    length,
    blocks,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Write dx of one tile of positions in `SEQUENCES` sequences, and its sum over them."""
    part, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    offs_l = block * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_d = tl.arange(0, BLOCK_D)
    mask_l = offs_l < length
    position = offs_l.to(tl.int64)
    # (BLOCK_L, BLOCK_D)
    total = tl.zeros((BLOCK_L, BLOCK_D), tl.float32)
    if pos_ptr is not None:
        pos = load_tokens(pos_ptr, position * pos_strides[0], offs_d, pos_strides[1], mask_l, WIDTH)
    for step in range(SEQUENCES):
        offs_m = (part * SEQUENCES + step) * length + offs_l
        mask_m = mask_l & (offs_m < sequences * length)
        offs_x = token_offsets(offs_m, rows, length, x_strides)
        offs_grad_hat = token_offsets(offs_m, rows, length, grad_hat_strides)
        offs_grad_x = token_offsets(offs_m, rows, length, grad_x_strides)
        # (BLOCK_L, BLOCK_D)
        grad_hat = load_tokens(grad_hat_ptr, offs_grad_hat, offs_d, grad_hat_strides[3], mask_m, WIDTH)
        y = load_tokens(x_ptr, offs_x, offs_d, x_strides[3], mask_m, WIDTH)
        if pos_ptr is not None:
            y += pos
        hat, r = standardize(y, offs_d, eps, WIDTH)
        grad_x = standardize_backward(grad_hat, hat, r, WIDTH)
        if residual_grad_ptr is not None:
            offs_residual = token_offsets(offs_m, rows, length, residual_grad_strides)
            grad_x += load_tokens(residual_grad_ptr, offs_residual, offs_d, residual_grad_strides[3], mask_m, WIDTH)
        store_tokens(grad_x_ptr, grad_x, offs_grad_x, offs_d, grad_x_strides[3], mask_m, WIDTH)
        total += tl.where(mask_m[:, None], grad_x, 0.0)
    if partial_ptr is not None:
        offs_partial = part.to(tl.int64) * length * WIDTH + position * WIDTH
        store_tokens(partial_ptr, total, offs_partial, offs_d, 1, mask_l, WIDTH)


def operands(**tensors: Tensor | None) -> dict[str, Any]:
    """The arguments `…_ptr` and `…_strides` of a kernel for each tensor by its name; None where it is absent."""
    pointers = {f"{name}_ptr": x for name, x in tensors.items()}
    return {**pointers, **{f"{name}_strides": None if x is None else x.stride() for name, x in tensors.items()}}


def normalize(x: Tensor, pos: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Normalize `x + pos`, statistics in float32.

    Args:
        x: `(batch, rows, length, dim)`, float32, float16 or bfloat16, in any strides.
        pos: `(length, dim)` of any of these dtypes and strides, or None for zeros.
        eps: added to the variance of a token.
        dtype: of the result.

    Returns:
        The tokens without mean and with unit variance, contiguous `(batch, rows, length, dim)`.

    Raises:
        LookupError: where no configuration serves `dim` features.
    """
    _, rows, length, width = x.shape
    hat = torch.empty(x.shape, dtype=dtype, device=x.device)
    tokens = hat.numel() // width
    config = launch.choose("normalize", x.device, x.dtype, width)
    arguments = {
        **operands(x=x, pos=pos),
        "hat_ptr": hat,
        "tokens": tokens,
        "rows": rows,
        "length": length,
        "eps": eps,
        "WIDTH": width,
        "BLOCK_D": launch.feature_block(width),
    }
    programs = launch.ceil_div(tokens, config.tiles["BLOCK_M"])
    launch.launch("normalize", normalize_kernel, programs, config, arguments, device=x.device)
    return hat


def normalize_backward(
    grad_hat: Tensor, x: Tensor, pos: Tensor | None, residual_grad: Tensor | None, eps: float, grad_x: Tensor
) -> Tensor | None:
    """Write the gradient of `x` from that of `normalize(x, pos, eps, ...)`.

    Tensors may be float32, float16 or bfloat16 each, in any strides.

    Args:
        grad_hat: `(batch, rows, length, dim)`, the gradient of the normalized tokens.
        x: `(batch, rows, length, dim)`.
        pos: `(length, dim)` or None.
        residual_grad: `(batch, rows, length, dim)`, what reaches `x + pos` past the normalization, or None.
        eps: added to the variance of a token.
        grad_x: `(batch, rows, length, dim)`, written.

    Returns:
        The gradient of `pos`, float32 `(length, dim)`, or None without `pos`.

    Raises:
        LookupError: where no configuration serves `dim` features.
    """
    samples, rows, length, width = x.shape
    sequences = samples * rows
    config = launch.choose("normalize_bwd", x.device, x.dtype, width)
    parts = launch.ceil_div(sequences, config.tiles["SEQUENCES"])
    blocks = launch.ceil_div(length, config.tiles["BLOCK_L"])
    partial = None if pos is None else torch.empty(parts, length, width, dtype=torch.float32, device=x.device)
    arguments = {
        **operands(grad_hat=grad_hat, x=x, pos=pos, residual_grad=residual_grad, grad_x=grad_x),
        "partial_ptr": partial,
        "sequences": sequences,
        "rows": rows,
        "length": length,
        "blocks": blocks,
        "eps": eps,
        "WIDTH": width,
        "BLOCK_D": launch.feature_block(width),
    }
    launch.launch("normalize_bwd", normalize_bwd_kernel, parts * blocks, config, arguments, device=x.device)
    return None if partial is None else partial.sum(0)
