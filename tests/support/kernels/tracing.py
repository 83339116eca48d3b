"""What kernels under Triton's interpreter read and write: places out of bounds, conflicts of programs, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import numpy as np
from torch import Tensor

Bounds = Literal["elements", "storage"]

MOVES_POINTERS = tuple(f"create_{name}" for name in ("addptr", "splat", "broadcast", "expand_dims", "reshape", "trans"))
"""The interpreter's operations whose results point into the tensor that their argument points into."""


@dataclass
class Accesses:
    """The loads, or the stores, of one launch: bytes, and the address and program of every single access."""

    total_bytes: int = 0
    unique_bytes: int = 0
    addresses: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    programs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    out_of_bounds: list[str] = field(default_factory=list)
    _parts: list[tuple[np.ndarray, int, int]] = field(default_factory=list)

    def gather(self) -> None:
        """Join what single accesses left."""
        if not self._parts:
            return
        parts, sizes, programs = zip(*self._parts, strict=True)
        counts = [part.size for part in parts]
        self.addresses, self.programs = np.concatenate(parts), np.repeat(np.array(programs), counts)
        widths = np.repeat(np.array(sizes), counts)
        self.total_bytes = int(widths.sum())
        first = np.unique(self.addresses, return_index=True)[1]
        self.unique_bytes = int(widths[first].sum())


@dataclass
class TracedLaunch:
    """One launch.

    Attributes:
        kernel: its name.
        loads, stores: what its programs accessed in bounds, and where they left them.
        write_conflicts: addresses that two programs wrote.
        races: addresses that one program wrote and another read.
    """

    kernel: str
    loads: Accesses = field(default_factory=Accesses)
    stores: Accesses = field(default_factory=Accesses)
    write_conflicts: list[int] = field(default_factory=list)
    races: list[int] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What is wrong with the launch, in words."""
        found = [f"load {x}" for x in self.loads.out_of_bounds] + [f"store {x}" for x in self.stores.out_of_bounds]
        if self.write_conflicts:
            found.append(f"{len(self.write_conflicts)} addresses written by two programs")
        if self.races:
            found.append(f"{len(self.races)} addresses written by one program and read by another")
        return [f"{self.kernel}: {problem}" for problem in found]

    def _finish(self) -> None:
        self.loads.gather()
        self.stores.gather()
        order = np.lexsort((self.stores.programs, self.stores.addresses))
        written, writers = self.stores.addresses[order], self.stores.programs[order]
        again = (written[1:] == written[:-1]) & (writers[1:] != writers[:-1])
        self.write_conflicts = np.unique(written[1:][again]).tolist()
        if written.size:
            place = np.searchsorted(written, self.loads.addresses).clip(max=written.size - 1)
            raced = (written[place] == self.loads.addresses) & (writers[place] != self.loads.programs)
            self.races = np.unique(self.loads.addresses[raced]).tolist()


@dataclass
class Trace:
    """The launches of a trace, in their order."""

    launches: list[TracedLaunch] = field(default_factory=list)

    def assert_clean(self) -> None:
        """Raise where a launch left its tensors or two programs met, and where there was no launch."""
        assert self.launches, "no kernel was launched"
        problems = [problem for launch in self.launches for problem in launch.problems()]
        assert not problems, "\n".join(problems)


def element_addresses(x: Tensor) -> np.ndarray:
    """Where the elements of `x` lie, those that it repeats by a stride of 0 once."""
    addresses = np.array([x.data_ptr()] if x.numel() else [], np.int64)
    for size, stride in zip(x.shape, x.stride(), strict=True):
        if stride and x.numel():
            addresses = (addresses[:, None] + np.arange(size) * stride * x.element_size()).reshape(-1)
    return addresses.astype(np.uint64)


class _Extent:
    """The addresses that belong to a tensor: a range, and in it the very elements where there are gaps."""

    def __init__(self, x: Tensor, bounds: Bounds) -> None:
        self.elements: np.ndarray | None = None
        if bounds == "storage":
            self.start = x.untyped_storage().data_ptr()
            self.end = self.start + x.untyped_storage().nbytes()
            return
        self.start = x.data_ptr()
        axes = [(size, stride * x.element_size()) for size, stride in zip(x.shape, x.stride(), strict=True) if stride]
        length = sum((size - 1) * step for size, step in axes) + x.element_size()
        self.end = self.start + (length if x.numel() else 0)
        if x.numel() and math.prod(size for size, _ in axes) * x.element_size() != length:
            self.elements = np.unique(element_addresses(x))

    def holds(self, addresses: np.ndarray, width: int) -> np.ndarray:
        inside = (addresses >= self.start) & (addresses + np.uint64(width) <= self.end)
        if self.elements is not None:
            place = np.searchsorted(self.elements, addresses).clip(max=self.elements.size - 1)
            inside &= self.elements[place] == addresses
        return inside


@contextmanager
def trace_accesses(bounds: Bounds = "elements") -> Iterator[Trace]:
    """Record every load and store of the launches inside, leaving out those that are out of bounds.

    A load out of bounds gives what a masked one gives, a store out of bounds writes nothing, so a wrong kernel
    harms nothing. Atomic operations are not seen.

    Args:
        bounds: where a pointer may go: to the very elements of its tensor argument, even where other arguments
            are views of the same storage, or anywhere in that storage (for tensors with too many elements to list).
    """
    from triton.runtime import interpreter as stock

    trace = Trace()
    extents: list[_Extent] = []
    program = 0
    builder, executor, handle = stock.InterpreterBuilder, stock.GridExecutor, stock.TensorHandle
    load, store = builder.create_masked_load, builder.create_masked_store
    set_program, execute, convert = builder.set_grid_idx, executor.__call__, stock._implicit_cvt

    def allowed(accesses: Accesses, pointers: Any, mask: Any) -> Any:
        width = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        addresses, active = np.broadcast_arrays(pointers.data, np.asarray(mask.data))
        own = [pointers.attr["extent"]] if "extent" in pointers.attr else extents
        inside = np.logical_or.reduce([extent.holds(addresses, width) for extent in own])
        if np.any(active & ~inside):
            count = int((active & ~inside).sum())
            accesses.out_of_bounds.append(f"of {count} values out of bounds in program {program}")
        accesses._parts.append((addresses[active & inside], width, program))
        return stock.TensorHandle(np.ascontiguousarray(active & inside), stock.tl.int1)

    def traced_load(self: Any, pointers: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        return load(self, pointers, allowed(trace.launches[-1].loads, pointers, mask), *rest, **keywords)

    def traced_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        return store(self, pointers, value, allowed(trace.launches[-1].stores, pointers, mask), *rest, **keywords)

    def set_traced_program(self: Any, x: int, y: int, z: int) -> None:
        nonlocal program
        program = int(np.ravel_multi_index((x, y, z), self.grid_dim))
        set_program(self, x, y, z)

    def convert_with_extent(argument: Any) -> Any:
        value = convert(argument)
        if isinstance(argument, Tensor):
            extents.append(_Extent(argument, bounds))
            value.handle.set_attr("extent", extents[-1])
        return value

    def keeping_extent(operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(self: Any, *arguments: Any) -> Any:
            result = operation(self, *arguments)
            for argument in arguments:
                if type(argument) is handle and "extent" in argument.attr:
                    result.attr["extent"] = argument.attr["extent"]
            return result

        return operate

    def traced_execute(self: Any, *arguments: Any, **keywords: Any) -> None:
        extents.clear()
        trace.launches.append(TracedLaunch(self.fn.__name__))
        execute(self, *arguments, **keywords)
        trace.launches[-1]._finish()

    with ExitStack() as patches:
        for owner, name, value in (
            (builder, "create_masked_load", traced_load),
            (builder, "create_masked_store", traced_store),
            (builder, "set_grid_idx", set_traced_program),
            (executor, "__call__", traced_execute),
            (stock, "_implicit_cvt", convert_with_extent),
            *((builder, name, keeping_extent(getattr(builder, name))) for name in MOVES_POINTERS),
        ):
            patches.enter_context(mock.patch.object(owner, name, value))
        yield trace
