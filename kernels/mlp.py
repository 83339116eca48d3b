"""The residual stream joined with positions and a branch, and the MLP on it with its normalization.

Of every token of a grid seen as `(batch, rows, length, dim)`, in any strides, with `W_1` `(hidden, dim)` and
`W_2` `(dim, hidden)`, n() the normalization without affine part of `normalization.py` and the exact GELU
`gelu(h) = h Φ(h)`, Φ the normal distribution:

    y = x + pos + branch,   h = W_1 n(y) + b_1,   z = y + W_2 gelu(h) + b_2.

One program takes a tile of tokens through all of it: the normalized tile stays on chip, the hidden layer goes
by in chunks, and nothing of it is stored. Products take operands in the weights' dtype and are summed up in
float32, as are y and z; y is rounded to the dtype of the residual stream before it is normalized, written, and read
again when z is made of it: in registers it would leave no room for the products. Where one of its
summands is wider than their operands, registers are short: "mlp_fwd_wide" has tiles of its own.

Saved for backward: y alone; see `mlp_backward.py`. Where nothing is saved z takes its place.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .normalization import load_tokens, operands, standardize, store_tokens, token_offsets
from .rounding import dot

SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_ZERO = tl.constexpr(0.3989422804014327)
MINUS_HALF_LOG2E = tl.constexpr(-0.7213475204444817)
TAIL = tl.constexpr((-1.0, -1.150809, -0.4606245, -0.05069786, 0.006481746, -0.0003776976))
"""log₂ Φ(-a) as a polynomial in a, by weighted least squares (Lawson's) for a from 0 to 5; it falls beyond."""
PIECE = tl.constexpr(1024)


@triton.jit
def normal_tail(a):
    """Φ(-a) of float32 values from 0 on: within 6e-6, and up to 5 within 0.13 % of itself."""
    power = ((((TAIL[5] * a + TAIL[4]) * a + TAIL[3]) * a + TAIL[2]) * a + TAIL[1]) * a + TAIL[0]
    return tl.exp2(power)


@triton.jit
def normal_distribution(h, EXACT: tl.constexpr):
    """Φ(h) of float32 values; where it is not exact as exact as `normal_tail`."""
    if EXACT:
        distribution = 0.5 + 0.5 * tl.erf(h * SQRT_HALF)
    else:
        tail = normal_tail(tl.abs(h))
        distribution = tl.where(h < 0, tail, 1.0 - tail)
    return distribution


@triton.jit
def gelu(h, EXACT: tl.constexpr):
    """`h Φ(h)` of float32 values; where it is not exact `max(h, 0) - |h| Φ(-|h|)`, and NaN for infinite ones."""
    if EXACT:
        activated = h * normal_distribution(h, EXACT)
    else:
        activated = tl.maximum(h, 0.0) - tl.abs(h) * normal_tail(tl.abs(h))
    return activated


@triton.jit
def normal_density(h):
    """φ(h) of float32 values."""
    return DENSITY_AT_ZERO * tl.exp2(h * h * MINUS_HALF_LOG2E)


@triton.jit
def pieces(tile, dtype: tl.constexpr):
    """The columns of a tile in a tuple of tiles whose rows take no more than `PIECE` bits in `dtype`."""
    COLUMNS: tl.constexpr = tile.shape[1] // 2
    BITS: tl.constexpr = COLUMNS * dtype.primitive_bitwidth
    if BITS < PIECE:
        parts = (tile,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, COLUMNS)), (0, 2, 1)))
        parts = pieces(left, dtype) + pieces(right, dtype)
    return parts


@triton.jit
def load_weight(ptr, offs_m, offs_n, strides, M: tl.constexpr, N: tl.constexpr):
    """Load `offs_m` × `offs_n` of a weight `(M, N)`, zero outside."""
    ptrs = ptr + offs_m.to(tl.int64)[:, None] * strides[0] + offs_n.to(tl.int64)[None, :] * strides[1]
    return tl.load(ptrs, mask=(offs_m < M)[:, None] & (offs_n < N)[None, :], other=0.0)


@triton.jit
def load_bias(ptr, offs, stride, SIZE: tl.constexpr):
    """Load `offs` of a bias `(SIZE,)` as float32, zero outside."""
    return tl.load(ptr + offs.to(tl.int64) * stride, mask=offs < SIZE, other=0.0).to(tl.float32)


@triton.jit
def load_residual(stream, offs_m, offs_d, mask_m, ROWS: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr):
    """`x + pos + branch` of tokens `offs_m`, rounded to the dtype of x, as float32.

    `stream` holds the pointers of x, pos and branch and then their strides.
    """
    x_ptr, pos_ptr, branch_ptr, x_strides, pos_strides, branch_strides = stream
    y = load_tokens(x_ptr, token_offsets(offs_m, ROWS, LENGTH, x_strides), offs_d, x_strides[3], mask_m, WIDTH)
    if pos_ptr is not None:
        offs_pos = (offs_m % LENGTH).to(tl.int64) * pos_strides[0]
        y += load_tokens(pos_ptr, offs_pos, offs_d, pos_strides[1], mask_m, WIDTH)
    if branch_ptr is not None:
        offs_branch = token_offsets(offs_m, ROWS, LENGTH, branch_strides)
        y += load_tokens(branch_ptr, offs_branch, offs_d, branch_strides[3], mask_m, WIDTH)
    return y.to(x_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def mlp_fwd_kernel(
    x_ptr,
    pos_ptr,
    branch_ptr,
    hidden_weight_ptr,
    hidden_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    y_ptr,
    z_ptr,
    x_strides,
    pos_strides,
    branch_strides,
    hidden_weight_strides,
    hidden_bias_strides,
    out_weight_strides,
    out_bias_strides,
    y_strides,
    z_strides,
    tokens,
    eps,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Write y and z, in one place or in two, of one tile of tokens."""
    dtype: tl.constexpr = hidden_weight_ptr.dtype.element_ty
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    offs_h = tl.arange(0, BLOCK_H)
    mask_m = offs_m < tokens
    stream = (x_ptr, pos_ptr, branch_ptr, x_strides, pos_strides, branch_strides)
    # (BLOCK_M, BLOCK_D)
    y = load_residual(stream, offs_m, offs_d, mask_m, ROWS, LENGTH, WIDTH)
    store_tokens(y_ptr, y, token_offsets(offs_m, ROWS, LENGTH, y_strides), offs_d, y_strides[3], mask_m, WIDTH)
    hat, _ = standardize(y, offs_d, eps, WIDTH)
    hat = hat.to(dtype)
    # (BLOCK_M, BLOCK_D)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # The normalized tile is to be read from shared memory in every round: hoisted it would fill the registers.
    for start in tl.range(0, HIDDEN, BLOCK_H, disable_licm=True):
        # (BLOCK_H, BLOCK_D)
        hidden_weight = load_weight(hidden_weight_ptr, start + offs_h, offs_d, hidden_weight_strides, HIDDEN, WIDTH)
        # (BLOCK_M, BLOCK_H)
        h = dot(hat, tl.trans(hidden_weight))
        h += load_bias(hidden_bias_ptr, start + offs_h, hidden_bias_strides[0], HIDDEN)[None, :]
        activated = gelu(h, dtype.primitive_bitwidth > 16).to(dtype)
        # (BLOCK_D, BLOCK_H)
        out_weight = load_weight(out_weight_ptr, offs_d, start + offs_h, out_weight_strides, WIDTH, HIDDEN)
        out = dot(activated, tl.trans(out_weight), out)
    tl.debug_barrier()  # What is read again are sums that other threads have written above.
    parts = pieces(out, y_ptr.dtype.element_ty)
    for index in tl.static_range(len(parts)):
        offs_d = index * parts[0].shape[1] + tl.arange(0, parts[0].shape[1])
        # (BLOCK_M, a piece)
        y = load_tokens(y_ptr, token_offsets(offs_m, ROWS, LENGTH, y_strides), offs_d, y_strides[3], mask_m, WIDTH)
        z = y + load_bias(out_bias_ptr, offs_d, out_bias_strides[0], WIDTH)[None, :] + parts[index]
        store_tokens(z_ptr, z, token_offsets(offs_m, ROWS, LENGTH, z_strides), offs_d, z_strides[3], mask_m, WIDTH)


def mlp(
    x: Tensor,
    pos: Tensor | None,
    branch: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    eps: float,
    y: Tensor | None,
    z: Tensor,
) -> None:
    """Write `y = x + pos + branch` and `z = y + W_2 gelu(W_1 n(y) + b_1) + b_2`.

    Tensors of tokens may be float32, float16 or bfloat16 each, in any strides, for inputs also 0.

    Args:
        x: `(batch, rows, length, dim)`, the residual stream.
        pos: `(length, dim)`, or None for zeros.
        branch: `(batch, rows, length, dim)`, or None for zeros.
        hidden_weight: `(hidden, dim)`, in the dtype of the products, as all weights.
        hidden_bias: `(hidden,)`.
        out_weight: `(dim, hidden)`.
        out_bias: `(dim,)`.
        eps: added to the variance of a token.
        y: `(batch, rows, length, dim)` in the dtype of `x`, written, or None where it need not be kept.
        z: like `y`, written; may be `x`, unless that repeats values by strides of 0.

    Raises:
        LookupError: where no configuration serves `dim` features.
    """
    y = z if y is None else y
    widest = max(summand.dtype.itemsize for summand in (x, pos, branch) if summand is not None)
    name = "mlp_fwd" if widest <= hidden_weight.dtype.itemsize else "mlp_fwd_wide"
    layers = {"hidden_weight": hidden_weight, "hidden_bias": hidden_bias, "out_weight": out_weight}
    arguments = operands(x=x, pos=pos, branch=branch, **layers, out_bias=out_bias, y=y, z=z)
    config = launch.choose(name, x.device, hidden_weight.dtype, x.shape[3])
    launch_over_tokens(name, mlp_fwd_kernel, config, x, hidden_weight, eps, arguments, products=2)


def launch_over_tokens(
    name: str,
    kernel: Any,
    config: launch.Config,
    grid: Tensor,
    weight: Tensor,
    eps: float,
    tensors: dict[str, Any],
    *,
    products: int,
) -> None:
    """Launch a kernel that makes `products` products of dim × hidden for each token of `grid`, in tiles of tokens."""
    hidden, width = weight.shape
    tokens, block = grid.numel() // width, launch.feature_block(width)
    programs = launch.ceil_div(tokens, config.tiles["BLOCK_M"])
    padded_hidden = launch.ceil_div(hidden, config.tiles["BLOCK_H"]) * config.tiles["BLOCK_H"]
    arguments = {
        **tensors,
        "tokens": tokens,
        "eps": eps,
        "ROWS": grid.shape[1],
        "LENGTH": grid.shape[2],
        "WIDTH": width,
        "HIDDEN": hidden,
        "BLOCK_D": block,
    }
    launch.launch(
        name,
        kernel,
        programs,
        config,
        arguments,
        device=grid.device,
        flops=2 * products * tokens * width * hidden,
        executed_flops=2 * products * programs * config.tiles["BLOCK_M"] * block * padded_hidden,
    )
