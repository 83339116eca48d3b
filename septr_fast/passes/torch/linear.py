"""Products of tokens with a weight, by the faster of the kernels that PyTorch carries."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from septr_fast.algebra.reading import is_hooked
from septr_fast.passes.inputs import autocasts, place
from septr_fast.passes.observers import differentiates_forward, records


def is_intel() -> bool:
    """Whether the processor says that Intel made it; False where it cannot be asked."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return "GenuineIntel" in platform.processor()


_HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
_HAS_FAST_MKL = torch.backends.mkl.is_available() and is_intel()
_LEAST_PRODUCTS = 1 << 22
_MOST_SUMMED = 512
"""Products in a sum: over 1280 the convolution was four times as far off as MKL, over 256 as close."""
_TILE = 32
"""Products that an AMX tile sums up in half precision."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias`, as `torch.nn.functional.linear`.

    Large float32 products on an x86 processor that is not Intel's run on oneDNN, which PyTorch reaches by a
    convolution of width 1; its `linear` takes MKL, which was the slower one on an AMD EPYC, and the faster one
    on an Intel Xeon.

    Args:
        x: `(..., in)`.
        weight: `(out, in)`, any strides.
        bias: `(out,)` or None.

    Returns:
        `(..., out)`.
    """
    if _ends_within_tile(x, weight):
        return _in_whole_tiles(x, weight, bias)
    if not _runs_on_onednn(x, weight):
        return F.linear(x, weight, bias)
    flat = x.flatten(0, -2).contiguous()
    multiply: Callable[..., Tensor] = _Linear.apply if torch.is_grad_enabled() else _convolve
    product = multiply(flat, weight, bias)
    return product.unflatten(0, x.shape[:-1])


def add_linear(x: Tensor, given: Tensor, weight: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """`x + dropout(linear(given, weight, bias))`, of tensors `(…, dim)`.

    `x` is the caller's own, who needs it no more: where nobody looks on, the result lies in its place, and but for
    half precision, which would be rounded once more, the product is summed up there.
    """
    target = None if dropout or x.dtype != given.dtype else place(x)
    if target is None:
        return x + F.dropout(linear(given, weight, bias), dropout)
    if x.dtype.itemsize == 2 or _runs_on_onednn(given, weight):
        return target.add_(linear(given, weight, bias))
    flat = target.view(-1, target.shape[-1])
    torch.addmm(flat, given.flatten(0, -2), weight.t(), out=flat)
    return target if bias is None else target.add_(bias)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`; of a plain `nn.Linear` without the fault that `_in_whole_tiles` avoids."""
    if is_plain(module) and _ends_within_tile(x, module.weight):
        return _in_whole_tiles(x, module.weight, module.bias)
    result: Tensor = module(x)
    return result


def call_head(module: nn.Module, cls_token: Tensor) -> Tensor:
    """`call`; without gradients on a CPU a sample at a time, since a product of several may round otherwise."""
    several = not records() and len(cls_token) > 1
    if several and is_plain(module) and cls_token.device.type == "cpu" and not torch.is_grad_enabled():
        return torch.cat([module(one) for one in cls_token.split(1)])
    return call(module, cls_token)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling `module` is `torch.nn.functional.linear` with its parameters and nothing else."""
    return type(module) is nn.Linear and not (module._forward_pre_hooks or is_hooked(module))


def _ends_within_tile(x: Tensor, weight: Tensor) -> bool:
    """Whether the product or that of its gradient sums in half precision over less than whole tiles."""
    summed = weight.shape if torch.is_grad_enabled() else weight.shape[1:]
    half = x.dtype.itemsize == 2 or autocasts("cpu")
    return _HAS_ONEDNN and x.device.type == "cpu" and half and any(size % _TILE for size in summed)


def _in_whole_tiles(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` with zeros up to a whole tile, of what is summed in it and in the product of its gradient.

    A tile that goes beyond the end of a row takes in the start of the next one, times zero. Where NaN stands there,
    that of another sample, NaN came out in this row too: oneDNN 3.12, which PyTorch 2.13 carries, on a processor with
    AMX (https://github.com/uxlfoundation/oneDNN/issues/5717).
    """
    outputs, inputs = weight.shape
    more_in = -inputs % _TILE
    more_out = -outputs % _TILE if torch.is_grad_enabled() else 0
    wide = F.pad(weight, (0, more_in, 0, more_out))
    product = F.linear(F.pad(x, (0, more_in)), wide, None if bias is None else F.pad(bias, (0, more_out)))
    return product[..., :outputs].contiguous()


def _runs_on_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is large, in float32 on a CPU without MKL's favour, and no transform or tracer looks on.

    Tracers come first: to one of them a comparison of sizes is a limit to the batch.
    """
    return (
        _HAS_ONEDNN
        and not _HAS_FAST_MKL
        and not records()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and x.numel() * weight.shape[0] >= _LEAST_PRODUCTS
        and min(weight.shape) >= 16
        and weight.shape[1] <= _MOST_SUMMED
        and not differentiates_forward()
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of `x` `(rows, in)` as a convolution over an image of one row, channels last."""
    rows, inputs = x.shape
    image = x.view(1, rows, 1, inputs).permute(0, 3, 1, 2)
    product = F.conv2d(image, weight[:, :, None, None], bias)
    return product.permute(0, 2, 3, 1).reshape(rows, weight.shape[0])


class _Linear(torch.autograd.Function):
    """`linear` of `x` `(rows, in)`. Its gradients are differentiable again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = linear(grad, weight.t()) if needs_x else None
        grad_weight = _outer(grad, x) if needs_weight else None
        return grad_x, grad_weight, grad.sum(0) if needs_bias else None


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """`leftᵀ right` of `(rows, m)` and `(rows, n)`, computed with the longer side of the result as its rows."""
    return left.t() @ right if left.shape[1] >= right.shape[1] else (right.t() @ left).t()
