"""Packed buffers of more than 2³¹ elements, into which programs write parts of their own, or read them there.

No stride can spread them. So a launch is stretched to as many parts as fill them, all of the same values, and of the
first part and of the last the last program alone is run: both have to leave the same, each in its place. What is
never touched of a buffer takes no memory.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from septr_fast.kernels import launch
from support.kernels.far_attention import FAR
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

from trust.far.stretched import KERNELS, Arguments, Parts, Stretched

CPU = torch.device("cpu")
NO_RESERVE = 0x4000
"""Linux's `MAP_NORESERVE`; the module `mmap` names it from Python 3.13 on."""


def fault(described: launch.Launch, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the last part of a launch of `KERNELS` whose buffers have more than 2³¹ elements, or None."""
    given = {**described.arguments, **described.config.tiles}
    found = (_fault(stretch(given), described, tensors) for stretch in KERNELS[described.name])
    return next((problem for problem in found if problem is not None), None)


def _fault(stretched: Stretched, described: launch.Launch, tensors: dict[str, Tensor]) -> str | None:
    last = _last_part(stretched, described.arguments)
    given = {name: _finite(x) for name, x in tensors.items()}
    buffers = {name: _buffer(size, 1 + last, given[name]) for name, size in stretched.buffers.items()}
    stretch = _grown(described, stretched, 1 + last, {**given, **buffers})
    try:
        for part in (0, last):
            with only((1 + part) * stretched.programs - 1):
                launch.run(stretch, CPU)
    except InterpreterError as error:
        return str(error)
    written = [name for name, size in stretched.buffers.items() if size.use == "written"]
    differs = [name for name in written if not _alike(buffers[name][:, 0], buffers[name][:, last])]
    return f"other values in the last part of {', '.join(differs)}" if differs else None


def _last_part(stretched: Stretched, arguments: Arguments) -> int:
    """The first that lies beyond `FAR` in every buffer, at the same positions of a sequence as part 0."""
    fewest = min(size.elements for size in stretched.buffers.values() if size.use != "aside")
    parts, length = -(-FAR // fewest), arguments.get("length", arguments.get("LENGTH", 1))
    return (parts // length + 1) * length


def _buffer(size: Parts, parts: int, given: Tensor) -> Tensor:
    """Memory for all parts `(outer, parts, elements)`; of what is read the first and the last hold the given values."""
    buffer = zeros((size.outer, parts, size.elements), given.dtype)
    if size.use == "read":
        buffer[:, :: parts - 1] = given.flatten()[: size.elements]
    return buffer


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of any size that takes memory only where it is touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags), dtype=dtype).view(shape)


def _grown(described: launch.Launch, stretched: Stretched, parts: int, tensors: dict[str, Tensor]) -> launch.Launch:
    """The launch with so many parts, of one program for the interpreter to number."""
    grown, tiles = stretched.grown(parts), described.config.tiles
    strides = {
        f"{name}_strides": _zero_at(dimensions, described.arguments[f"{name}_strides"])
        for name, dimensions in stretched.same.items()
    }
    sizes = {name: value for name, value in grown.items() if name not in tiles}
    config = replace(described.config, tiles={name: grown.get(name, value) for name, value in tiles.items()})
    arguments = {**described.arguments, **tensors, **strides, **sizes}
    return replace(described, programs=1, arguments=arguments, config=config)


def _zero_at(dimensions: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(0 if dimension in dimensions else stride for dimension, stride in enumerate(strides))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether both parts were written, and hold the same."""
    return torch.equal(one, other) and bool(one.any())


def _finite(x: Tensor) -> Tensor:
    """A copy in the same strides, one in the place of what is not a number; what is expanded, an operand, itself."""
    if 0 in x.stride():
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x.nan_to_num(1.0))


@contextmanager
def only(program: int) -> Iterator[None]:
    """Let a launch of one program be that of another number."""

    def set_program(self: Any, *_: int) -> None:
        self.grid_idx = (program, 0, 0)

    with mock.patch.object(InterpreterBuilder, "set_grid_idx", set_program):
        yield
