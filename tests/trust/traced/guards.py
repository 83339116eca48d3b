"""Guard bands around everything that `empty` and its kin give, and NaN in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from support.kernels.poison import GUARD, GUARD_BYTE, Guarded, guarded
from torch import Tensor

OWNERS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


@contextmanager
def guarded_empty() -> Iterator[list[Guarded]]:
    """Let `empty` and its kin give guarded tensors of NaN on the CPU; yields all that were given."""
    given: list[Guarded] = []
    inside = False

    def guarding(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def allocate_guarded(*arguments: Any, **keywords: Any) -> Any:
            nonlocal inside
            plain = allocate(*arguments, **keywords)
            if inside or plain.device.type != "cpu" or not plain.is_floating_point() or plain.layout != torch.strided:
                return plain
            inside = True
            try:
                with torch.no_grad():
                    given.append(guarded(plain.shape, plain.dtype, plain.stride()))
                    storage = given[-1].buffer.untyped_storage()
                    return plain.set_(storage, GUARD, plain.shape, plain.stride())
            finally:
                inside = False

        return allocate_guarded

    with ExitStack() as patches:
        for owner, name in OWNERS:
            patches.enter_context(mock.patch.object(owner, name, guarding(getattr(owner, name))))
        yield given


def touched(given: list[Guarded]) -> list[str]:
    """Guard bands that were written."""
    wrong = []
    for one in given:
        count = int((one.buffer[one.outside] != GUARD_BYTE).sum())
        if count:
            wrong.append(f"{count} bytes outside of a tensor {tuple(one.tensor.shape)} are written")
    return wrong
