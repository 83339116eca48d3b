"""Counting: bytes kept for the backward pass, and the work, the operations and the traffic of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from septr_fast.tuning.tensor_bytes import distinct_bytes


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
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace == "prim":
            return result
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        for leaf in _tensors(result):
            if leaf.untyped_storage()._cdata not in given:
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
    return hold(lambda: model(x))[1]


def hold(call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of `call()`, and the bytes made by it that are alive when it returns, the result included."""
    with _Storages() as storages:
        result = call()
        alive = storages.alive()
    return result, alive


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in `call()`, 2 per multiply-add, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


class Operations(TorchDispatchMode):
    """Counts the operators that PyTorch dispatches while it is entered, backward passes included.

    Attributes:
        operations: all but views.
        views: operators that only look at a tensor in another way.
        flops: floating-point operations of the matrix products, 2 per multiply-add.
        bytes_moved: of the distinct tensors that each operation reads or writes, added up; of views and of
            memory that is only taken, none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.views = 0
        self.flops = 0
        self.bytes_moved = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "prim":
            return function(*args, **kwargs)
        if _is_composed(function):
            with self:
                return function.decompose(*args, **kwargs)
        result = function(*args, **kwargs)
        self._count(function, args, kwargs, result)
        return result

    def _count(self, function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given, made = _tensors((args, kwargs)), _tensors(result)
        places = {x.untyped_storage()._cdata for x in given}
        shared = bool(made) and all(x.untyped_storage()._cdata in places for x in made)
        if shared and not function._schema.is_mutable:
            self.views += 1
            return
        self.operations += 1
        formula = _flop_formula(function)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        if "empty" not in function._schema.name:
            self.bytes_moved += distinct_bytes((*given, *made))


@functools.cache
def _is_composed(function: Any) -> bool:
    """Whether an operator is made of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")


@functools.cache
def _flop_formula(function: Any) -> Callable[..., int] | None:
    """PyTorch's formula for an operator, which serves it in place too; None for one that is no product."""
    formulas = {str(packet): formula for packet, formula in flop_registry.items()}
    return formulas.get(str(function.overloadpacket).removesuffix("_"))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
