"""Counting: bytes kept for the backward pass and the work of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass saves for the backward pass, parameters left out.

    Counted by hooks on saved tensors. What `torch.utils.checkpoint` holds to recompute from is out of
    their sight: see `held_bytes`.
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(model(x))
    return sum(sizes.values())


class _Storages(TorchDispatchMode):
    """Watches every storage that an operation makes; views of what is there already do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                weak = StorageWeakRef(storage)
                self.seen[storage._cdata] = weak, storage.nbytes()
        return result

    def alive(self) -> int:
        """Bytes of the watched storages that something still holds."""
        return sum(size for reference, size in self.seen.values() if not reference.expired())


def held_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes made by a forward pass that are alive when it has returned its result, the result included.

    Unlike `saved_bytes` this sees whatever holds a tensor, recomputation's inputs too.
    """
    with _Storages() as storages:
        result = model(x)
        alive = storages.alive()
    del result
    return alive


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in `call()`, 2 per multiply-add, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
