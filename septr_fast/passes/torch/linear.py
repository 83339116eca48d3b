"""Products of tokens with a weight."""

from __future__ import annotations

import platform
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from septr_fast.algebra.reading import is_hooked
from septr_fast.passes.inputs import autocasts, place
from septr_fast.passes.observers import records

_HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
_TILE = 32
"""Products that an AMX tile sums up in half precision."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias`, as `torch.nn.functional.linear`, without the fault that `_in_whole_tiles` avoids.

    Args:
        x: `(..., in)`.
        weight: `(out, in)`, any strides.
        bias: `(out,)` or None.

    Returns:
        `(..., out)`.
    """
    return (_in_whole_tiles if _ends_within_tile(x, weight) else F.linear)(x, weight, bias)


def add_linear(x: Tensor, given: Tensor, weight: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """`x + dropout(linear(given, weight, bias))`, of tensors `(…, dim)`.

    `x` is the caller's own, who needs it no more: where nobody looks on, the result lies in its place, and but for
    half precision, which would be rounded once more, the product is summed up there.
    """
    target = None if dropout or x.dtype != given.dtype else place(x)
    if target is None:
        return x + F.dropout(linear(given, weight, bias), dropout)
    if x.dtype.itemsize == 2:
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
