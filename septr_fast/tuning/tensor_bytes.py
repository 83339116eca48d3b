"""How many bytes tensors have, views of the same values taken as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct ones among `tensors`, the elements that an expanded view repeats counted once."""
    return sum({_place(x): _elements(x) * x.element_size() for x in tensors}.values())


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.untyped_storage()._cdata, x.storage_offset(), tuple(x.shape), x.stride()


def _elements(x: Tensor) -> int:
    """Elements of `x`, those that an expanded view repeats counted once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride or not size else 1
    return count
