"""Outputs that show what a kernel did not write, and what it wrote besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GUARD = 64
"""Values of a guard band before and behind a tensor."""

GUARD_BYTE = 0xA5


@dataclass(frozen=True)
class Guarded:
    """A tensor of NaN inside a buffer whose other bytes must stay as they are.

    Attributes:
        tensor: to be written.
        buffer: its storage with the guard bands, as bytes.
        outside: which bytes of `buffer` belong to no element of `tensor`.
    """

    tensor: Tensor
    buffer: Tensor
    outside: Tensor

    def check(self) -> None:
        """Raise where a value of `tensor` was not written, or a byte around and between its values was."""
        unwritten = int(self.tensor.isnan().sum())
        assert not unwritten, f"{unwritten} of {self.tensor.numel()} values are not written, or NaN"
        touched = int((self.buffer[self.outside] != GUARD_BYTE).sum())
        assert not touched, f"{touched} bytes outside of the tensor are written"


def guarded(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    strides: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Guarded:
    """A tensor of NaN with guard bands, in gaps between its strides too.

    Args:
        shape: of the tensor.
        dtype: floating point.
        strides: in elements, not negative; row-major where None.
        device: where it lies.
    """
    assert dtype.is_floating_point, dtype
    if strides is None:
        strides = torch.empty(tuple(shape), device="meta").stride()
    extent = (
        1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min(shape, default=1)
        else 0
    )
    size = dtype.itemsize
    buffer = torch.full(((extent + 2 * GUARD) * size,), GUARD_BYTE, dtype=torch.uint8, device=device)
    tensor = buffer.view(dtype).as_strided(tuple(shape), tuple(strides), GUARD)
    outside = torch.ones(extent + 2 * GUARD, dtype=torch.bool, device=device)
    outside.as_strided(tuple(shape), tuple(strides), GUARD).fill_(False)
    tensor.fill_(float("nan"))
    return Guarded(tensor, buffer, outside.repeat_interleave(size))


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Fill what `empty` and its kin give with NaN, where it is floating point and not on the meta device."""

    def poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def allocate_poisoned(*arguments: Any, **keywords: Any) -> Any:
            result = allocate(*arguments, **keywords)
            if result.is_floating_point() and not result.is_meta:
                with torch.no_grad():
                    result.fill_(float("nan"))
            return result

        return allocate_poisoned

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
        mock.patch.object(torch, "empty_strided", poisoned(torch.empty_strided)),
        mock.patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)),
        mock.patch.object(Tensor, "new_empty_strided", poisoned(Tensor.new_empty_strided)),
    ):
        yield
