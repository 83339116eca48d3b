"""What every chunk of a pass reads, so that its gradient, a sum over the chunks, is summed up in float32.

Autograd sums in the dtype of the operand: in 16 bits the sum is rounded after each chunk, where a pass in one piece is
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from septr_fast.algebra import older_torch
from septr_fast.algebra.folded import Direct, LowRank, Merged, Mlp, tensors_of
from septr_fast.passes.observers import differentiates_forward, records

Operand = TypeVar("Operand", bound=Tensor | Direct | Merged | LowRank | Mlp)
Operands = tuple[Tensor | Direct | Merged | LowRank | Mlp, ...]
"""What every chunk of a pass reads."""


def reader(operand: Operand) -> Callable[[], Operand]:
    """A function to call once for each chunk: it gives `operand` itself or, of 16-bit tensors with gradients, aliases.

    Args:
        operand: a tensor or folded weights, in any shape.
    """
    if not torch.is_grad_enabled():
        return lambda: operand
    if isinstance(operand, Tensor):
        return cast("Callable[[], Operand]", _reader(operand))
    readers = {name: _reader(x) for name, x in tensors_of(operand).items()}
    return lambda: older_torch.replace(operand, **{name: read() for name, read in readers.items()})


def _reader(x: Tensor) -> Callable[[], Tensor]:
    if not _rounds_sums(x):
        return lambda: x
    wide, narrow = x.float(), x.detach()
    alias: Callable[..., Tensor] = _Alias.apply
    return lambda: alias(wide, narrow)


def _rounds_sums(x: Tensor) -> bool:
    """Whether autograd sums up gradients of `x` in 16 bits, and no transform or tracer looks on."""
    sums = x.requires_grad and x.dtype.itemsize == 2
    return sums and not records() and not differentiates_forward()


class _Alias(torch.autograd.Function):
    """`narrow`, without a copy, as if it were cast from `wide`, which gets the gradient in float32."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, narrow: Tensor) -> Tensor:
        return narrow.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.float(), None
