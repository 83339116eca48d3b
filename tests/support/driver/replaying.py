"""What stands in for CUDA graphs on a CPU: operations recorded once, which a replay runs again on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from support.driver.comparing import compared_as_on_a_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from septr_fast.algebra import fold_cache
from septr_fast.inference import graphs


def storage(x: Tensor) -> int:
    """Where the memory of `x` begins."""
    return x.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Records operations, and whose memory they read that was there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.outside: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        self.outside |= {storage(x): x for x in given if storage(x) not in self._made}
        result = func(*args, **(kwargs or {}))
        places = {storage(x) for x in given}
        self._made |= {storage(x) for x in _tensors(result) if storage(x) not in places}
        self.operations.append((func, args, kwargs or {}, _tensors(result)))
        return result

    def replay(self) -> None:
        """Run all of it again; what it made before is written anew."""
        for func, args, kwargs, results in self.operations:
            places = {storage(x) for x in _tensors((args, kwargs))}
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif any(storage(x) not in places for x in results):
                for written, found in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    written.copy_(found)


class Replayed:
    """In place of `graphs.Graph`; what happens goes to `happened`."""

    happened: list[str]

    def __init__(self, call: Callable[[], Tensor], stream: object, pool: object) -> None:
        self.happened.append("captured")
        self.tape = Tape()
        with mock.patch.object(fold_cache, "_captures", return_value=True), self.tape:
            self.result = call()

    def replay(self) -> None:
        """Run the same operations on the same memory, whatever is switched on."""
        self.happened.append("replayed")
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            self.tape.replay()


class AtOnce:
    """In place of `graphs.Turns`."""

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """At once."""
        yield

    @contextmanager
    def last(self) -> Iterator[None]:
        """At once."""
        yield


@contextmanager
def replaying_as_on_a_gpu() -> Iterator[list[str]]:
    """Graphs are captured and replayed; yields what happens: "captured" and "replayed"."""
    happened: list[str] = []
    kind = type("Replayed", (Replayed,), {"happened": happened})
    with mock.patch.multiple(graphs, Graph=kind, Turns=AtOnce), compared_as_on_a_gpu():
        yield happened


def unheld(fast: graphs.GraphedSepTr) -> list[str]:
    """What graphs read of memory that is kept by nothing of theirs."""
    kept = fast._kept
    if kept is None:
        return []
    held = {storage(x) for x in _tensors(_values(kept.state._held))}
    found = []
    for captured in kept.graphs.values():
        own = [captured.x, *([] if captured.lengths is None else [captured.lengths.valid])]
        places = held | {storage(x) for x in own}
        outside = captured.graph.tape.outside  # type: ignore[attr-defined]
        found += [f"{tuple(x.shape)}, {x.dtype}" for place, x in outside.items() if place and place not in places]
    return found


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _values(held: Any) -> Any:
    """Lists in place of dataclasses, which hold folded weights."""
    if hasattr(held, "__dataclass_fields__"):
        return [_values(x) for x in vars(held).values()]
    if isinstance(held, tuple | list):
        return [_values(x) for x in held]
    return list(held.values()) if isinstance(held, dict) else held
