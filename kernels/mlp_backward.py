"""The gradients of `mlp`, from y, which is all that it kept.

The kernel makes h again and gives, with φ = Φ' and dz the gradient of z,

    dh = (dz W_2) (Φ(h) + h φ(h)),   g = dh W_1,   dy = dz + r (g - mean(g) - n(y) mean(g n(y))),
    dW_1 = dhᵀ n(y),   db_1 = Σ dh,   dW_2 = dzᵀ gelu(h),   db_2 = Σ dz,

where the sum of g n(y) over dim is that of dh (h - b_1) over the hidden layer: it comes with the chunks of that. Sums
over tokens for the biases are no part of it: they would take registers that it does not have.

n(y), gelu(h) and dh of all tokens are stored for the products over tokens, which are the vendor's. The caller bounds
that memory by the size of his chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .mlp import launch_over_tokens, load_bias, load_weight, normal_density, normal_distribution, pieces
from .normalization import load_tokens, operands, standardize, store_tokens, token_offsets
from .products import column_sums, outer
from .rounding import dot, sum_of_products


class Gradients(NamedTuple):
    """Gradients of the layers, float32.

    Attributes:
        hidden_weight: `(hidden, dim)`.
        hidden_bias: `(hidden,)`.
        out_weight: `(dim, hidden)`.
        out_bias: `(dim,)`.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


@triton.jit
def load_packed(ptr, tokens, offs_d, mask_m, WIDTH: tl.constexpr):
    """Load tokens of a contiguous `(tokens, WIDTH)` in its dtype, zero where masked and beyond `WIDTH`."""
    ptrs = ptr + (tokens * WIDTH)[:, None] + offs_d[None, :]
    return tl.load(ptrs, mask=mask_m[:, None] & (offs_d < WIDTH)[None, :], other=0.0)


@triton.jit
def mlp_bwd_kernel(
    y_ptr,
    grad_z_ptr,
    hidden_weight_ptr,
    hidden_bias_ptr,
    out_weight_ptr,
    grad_y_ptr,
    hat_ptr,
    activated_ptr,
    grad_h_ptr,
    rounded_ptr,
    y_strides,
    grad_z_strides,
    hidden_weight_strides,
    hidden_bias_strides,
    out_weight_strides,
    grad_y_strides,
    tokens,
    eps,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    RELOAD: tl.constexpr = 0,
):
    """Write dy, n(y), gelu(h), dh and, where asked for, dz in the weights' dtype of one tile of tokens.

    With `RELOAD` the products take n(y) and dz from where they were written: Triton leaves what was loaded in shared
    memory for an sm_90's tensor cores, and brings what was computed through registers in every round.
    """
    dtype: tl.constexpr = hidden_weight_ptr.dtype.element_ty
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    offs_h = tl.arange(0, BLOCK_H)
    mask_m = offs_m < tokens
    offs_y = token_offsets(offs_m, ROWS, LENGTH, y_strides)
    offs_grad_z = token_offsets(offs_m, ROWS, LENGTH, grad_z_strides)
    packed = offs_m.to(tl.int64)
    # (BLOCK_M, BLOCK_D)
    y = load_tokens(y_ptr, offs_y, offs_d, y_strides[3], mask_m, WIDTH)
    hat, r = standardize(y, offs_d, eps, WIDTH)
    mean_y = tl.sum(y, 1) / WIDTH
    hat = hat.to(dtype)
    store_tokens(hat_ptr, hat, packed * WIDTH, offs_d, 1, mask_m, WIDTH)
    grad_z = load_tokens(grad_z_ptr, offs_grad_z, offs_d, grad_z_strides[3], mask_m, WIDTH).to(dtype)
    if rounded_ptr is not None:
        store_tokens(rounded_ptr, grad_z, packed * WIDTH, offs_d, 1, mask_m, WIDTH)
    if RELOAD:
        tl.debug_barrier()  # What is read was written by other threads.
        hat = load_packed(hat_ptr, packed, offs_d, mask_m, WIDTH)
        if rounded_ptr is not None:
            grad_z = load_packed(rounded_ptr, packed, offs_d, mask_m, WIDTH)
    # (BLOCK_M, BLOCK_D)
    grad_hat = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # (BLOCK_M,)
    grad_hat_hat = tl.zeros((BLOCK_M,), tl.float32)
    # The normalized tile is to be read from shared memory in every round: hoisted it would fill the registers.
    for start in tl.range(0, HIDDEN, BLOCK_H, disable_licm=True):
        # (BLOCK_H, BLOCK_D)
        hidden_weight = load_weight(hidden_weight_ptr, start + offs_h, offs_d, hidden_weight_strides, HIDDEN, WIDTH)
        # (BLOCK_M, BLOCK_H)
        product = dot(hat, tl.trans(hidden_weight))
        h = product + load_bias(hidden_bias_ptr, start + offs_h, hidden_bias_strides[0], HIDDEN)[None, :]
        distribution = normal_distribution(h, dtype.primitive_bitwidth > 16)
        store_tokens(activated_ptr, h * distribution, packed * HIDDEN, start + offs_h, 1, mask_m, HIDDEN)
        slope = distribution + h * normal_density(h)
        # (BLOCK_D, BLOCK_H)
        out_weight = load_weight(out_weight_ptr, offs_d, start + offs_h, out_weight_strides, WIDTH, HIDDEN)
        # (BLOCK_M, BLOCK_H)
        grad_h = (dot(grad_z, out_weight) * slope).to(dtype)
        store_tokens(grad_h_ptr, grad_h, packed * HIDDEN, start + offs_h, 1, mask_m, HIDDEN)
        grad_hat = dot(grad_h, hidden_weight, grad_hat)
        grad_hat_hat += sum_of_products(grad_h.to(tl.float32), product, 1)
    mean = tl.sum(grad_hat, 1) / WIDTH
    parts = pieces(grad_hat, y_ptr.dtype.element_ty)
    for index in tl.static_range(len(parts)):
        offs_d = index * parts[0].shape[1] + tl.arange(0, parts[0].shape[1])
        # (BLOCK_M, a piece)
        y = load_tokens(y_ptr, token_offsets(offs_m, ROWS, LENGTH, y_strides), offs_d, y_strides[3], mask_m, WIDTH)
        hat = (y - mean_y[:, None]) * r[:, None]
        grad_y = r[:, None] * (parts[index] - mean[:, None] - hat * (grad_hat_hat / WIDTH)[:, None])
        offs_grad_z = token_offsets(offs_m, ROWS, LENGTH, grad_z_strides)
        grad_y += load_tokens(grad_z_ptr, offs_grad_z, offs_d, grad_z_strides[3], mask_m, WIDTH)
        offs_grad_y = token_offsets(offs_m, ROWS, LENGTH, grad_y_strides)
        store_tokens(grad_y_ptr, grad_y, offs_grad_y, offs_d, grad_y_strides[3], mask_m, WIDTH)


def mlp_backward(
    y: Tensor,
    grad_z: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    eps: float,
    grad_y: Tensor,
) -> Gradients:
    """Write the gradient of the `y` that `mlp` kept and return those of the weights.

    Tensors of tokens may be float32, float16 or bfloat16 each, in any strides, for inputs also 0.

    Args:
        y: `(batch, rows, length, dim)`.
        grad_z: `(batch, rows, length, dim)`.
        hidden_weight: `(hidden, dim)`, in the dtype of the products, as all weights.
        hidden_bias: `(hidden,)`.
        out_weight: `(dim, hidden)`.
        eps: added to the variance of a token.
        grad_y: `(batch, rows, length, dim)`, written.

    Returns:
        The gradients of the layers.

    Raises:
        LookupError: where no configuration serves `dim` features.
    """
    hidden, width = hidden_weight.shape
    tokens, dtype = y.numel() // width, hidden_weight.dtype
    hat = torch.empty(tokens, width, dtype=dtype, device=y.device)
    activated, grad_h = (torch.empty(tokens, hidden, dtype=dtype, device=y.device) for _ in range(2))
    reusable = grad_z.dtype == dtype and grad_z.is_contiguous()
    rounded = grad_z.view(tokens, width) if reusable else torch.empty_like(hat)
    arguments = {
        **operands(
            y=y,
            grad_z=grad_z,
            hidden_weight=hidden_weight,
            hidden_bias=hidden_bias,
            out_weight=out_weight,
            grad_y=grad_y,
        ),
        "hat_ptr": hat,
        "activated_ptr": activated,
        "grad_h_ptr": grad_h,
        "rounded_ptr": None if reusable else rounded,
    }
    config = launch.choose("mlp_bwd", y.device, dtype, width)
    launch_over_tokens("mlp_bwd", mlp_bwd_kernel, config, y, hidden_weight, eps, arguments, products=3)
    return Gradients(outer(grad_h, hat), column_sums(grad_h), outer(rounded, activated), column_sums(rounded))
