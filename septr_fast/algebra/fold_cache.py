"""Folded weights kept between calls, for as long as they are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Folded = TypeVar("Folded")


class FoldCache(Generic[Folded]):
    """Keeps folded weights for as long as their parameters hold the very same values.

    A copy of the parameters is kept beside the result and compared with them at every call, so no way of
    changing a parameter goes unnoticed, `.data` and memory shared with other processes included. While a
    CUDA graph is captured the weights are folded in the graph. Nothing is carried over by `copy.deepcopy`
    or `pickle`.
    """

    def __init__(self) -> None:
        self._entry: tuple[object, list[Tensor], Folded] | None = None

    def get(self, key: object, parameters: Sequence[Tensor], fold: Callable[[], Folded]) -> Folded:
        """The kept result of `fold` for `key` (hashable settings) and these `parameters`, or a new one."""
        if _captures(parameters):
            return fold()
        entry = self._entry
        if entry is not None and entry[0] == key and _same_values(entry[1], parameters):
            return entry[2]
        with torch.inference_mode(False), torch.no_grad():
            kept = [parameter.detach().clone() for parameter in parameters]
            folded = fold()
        self._entry = (key, kept, folded)
        return folded

    def __deepcopy__(self, memo: dict[int, object]) -> FoldCache[Folded]:
        return FoldCache()

    def __reduce__(self) -> tuple[type[FoldCache[Folded]], tuple[()]]:
        return FoldCache, ()


def _captures(parameters: Sequence[Tensor]) -> bool:
    return any(parameter.is_cuda for parameter in parameters) and torch.cuda.is_current_stream_capturing()


def _same_values(kept: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    same_kind = len(kept) == len(parameters) and all(
        (old.dtype, old.device, old.shape) == (new.dtype, new.device, new.shape)
        for old, new in zip(kept, parameters, strict=True)
    )
    if not same_kind:
        return False
    if all(parameter.device.type == "cpu" for parameter in parameters):
        return all(torch.equal(old, new) for old, new in zip(kept, parameters, strict=True))
    differs = [(old != new).any() for old, new in zip(kept, parameters, strict=True)]
    return not differs or not bool(torch.stack(differs).any())
