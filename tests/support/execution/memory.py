"""Global memory with its bounds, and shared memory that knows who wrote and who read what since the last barrier."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
from support.execution.faults import FaultError

Array = np.ndarray[Any, Any]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
POISON = 0xFF
"""Every byte that nothing has been written to; of floating-point numbers NaN."""
_ALIGNMENT = 1024
"""Of a program's shared memory, which the swizzling of tensor cores counts on."""


class GlobalMemory:
    """The memory of tensors as it is, and nothing beside it.

    Args:
        regions: `(address, bytes)` of each.
    """

    def __init__(self, regions: Iterable[tuple[int, int]]) -> None:
        sorted_regions = sorted((start, start + size) for start, size in regions if size)
        self._starts = np.array([start for start, _ in sorted_regions], np.int64)
        self._ends = np.maximum.accumulate(np.array([end for _, end in sorted_regions], np.int64))
        self._base = int(self._starts[0]) & ~63 if sorted_regions else 0
        size = int(self._ends[-1]) - self._base if sorted_regions else 0
        whole = np.frombuffer((ctypes.c_uint8 * size).from_address(self._base), np.uint8) if size else np.empty(0)
        self._views = {width: whole[: size // width * width].view(kind) for width, kind in UNSIGNED.items()}
        self._bytes = whole

    def load(self, addresses: Array, width: int, count: int, line: int) -> list[Array]:
        """`count` values of `width` bytes from each of `addresses`."""
        start = self._places(addresses, width, count, line) // width
        return [self._views[width][start + index] for index in range(count)]

    def store(self, addresses: Array, values: list[Array], width: int, line: int) -> None:
        """`values` of `width` bytes, side by side, to each of `addresses`."""
        start = self._places(addresses, width, len(values), line) // width
        for index, value in enumerate(values):
            self._views[width][start + index] = value

    def raw(self, addresses: Array, size: int, line: int) -> Array:
        """`size` bytes from each of `addresses`, `(addresses, size)`."""
        return self._bytes[self._places(addresses, size, 1, line)[:, None] + np.arange(size)]

    def _places(self, addresses: Array, width: int, count: int, line: int) -> Array:
        """Bytes from the start, of addresses that are within one region and aligned."""
        size = width * count
        region = np.searchsorted(self._starts, addresses, "right") - 1
        if ((region < 0) | (addresses + size > self._ends[np.maximum(region, 0)])).any():
            raise FaultError("global memory out of bounds", line)
        if (addresses % size).any():
            raise FaultError("global memory misaligned", line)
        return addresses - self._base


class _Users:
    """Which warps have used each place since the last barrier: one of them, and whether there are more.

    Args:
        places: of shared memory.
    """

    def __init__(self, places: int) -> None:
        self._epoch = np.zeros(places, np.int32)
        self._warp = np.zeros(places, np.int16)
        self._more = np.zeros(places, np.bool_)

    def others(self, at: Array, warp: Array, epoch: Array) -> Array:
        """Where a warp besides `warp` is among those of this `epoch`."""
        return (self._epoch[at] == epoch) & (self._more[at] | (self._warp[at] != warp))

    def note(self, at: Array, warp: Array, epoch: Array) -> None:
        """`warp` uses the places `at` in this `epoch`."""
        fresh = self._epoch[at] != epoch
        if fresh.any():
            first = at[fresh]
            self._epoch[first] = np.broadcast_to(epoch, at.shape)[fresh]
            self._warp[first] = np.broadcast_to(warp, at.shape)[fresh]
            self._more[first] = False
        self._more[at[self._warp[at] != warp]] = True


class SharedMemory:
    """The shared memory of several programs side by side.

    What two warps do to one place without a barrier between them is a race. Places are of two bytes: nothing smaller
    is ever moved. Copies that run by themselves own what they write until they are waited for, and so do tensor cores
    what they read.

    Args:
        programs: that run.
        size: bytes of each.
    """

    def __init__(self, programs: int, size: int) -> None:
        self.size = size
        self.stride = -(-size // _ALIGNMENT) * _ALIGNMENT
        self._bytes = np.full(programs * self.stride, POISON, np.uint8)
        self.views = {width: self._bytes.view(kind) for width, kind in UNSIGNED.items()}
        places = programs * self.stride // 2
        self._written = _Users(places)
        self._read = _Users(places)
        self._filled = np.zeros(places, np.bool_)
        self._arriving = np.zeros(places, np.bool_)
        self._leaving = np.zeros(places, np.bool_)
        self._unseen = np.zeros(places, np.bool_)
        self.epoch = np.ones(programs, np.int32)
        """Barriers that each program has passed, and one."""

    def places(self, programs: Array, addresses: Array, size: int, align: int, line: int) -> Array:
        """Bytes of this memory, checked, for `addresses` within the memory of `programs`."""
        if ((addresses < 0) | (addresses + size > self.size)).any():
            raise FaultError(f"shared memory out of bounds: {addresses.max()} and {size} of {self.size}", line)
        if (addresses % align).any():
            raise FaultError("shared memory misaligned", line)
        return addresses + programs * self.stride

    def read(self, places: Array, warps: Array, programs: Array, line: int) -> None:
        """Note that `warps` of `programs` read two bytes at each of `places` `(threads, count)`."""
        at, warp, epoch = places >> 1, warps[:, None], self.epoch[programs][:, None]
        if self._arriving[at].any():
            raise FaultError("shared memory is read before its copy has landed", line)
        if not self._filled[at].all():
            raise FaultError("shared memory is read that nothing was written to", line)
        if self._written.others(at, warp, epoch).any():
            raise FaultError("a warp reads what another wrote, no barrier between", line)
        self._read.note(at, warp, epoch)

    def write(self, places: Array, values: Array, warps: Array, programs: Array, line: int) -> None:
        """Write `values` `(threads, count)` of two bytes at `places`.

        Several may write the same value to one place: the compiler lets all threads that hold a copy do so.
        """
        at, warp, epoch = places >> 1, warps[:, None], self.epoch[programs][:, None]
        self._check_free(at, line)
        content = self.views[2]
        changed = content[at] != values
        if (self._written.others(at, warp, epoch) & changed).any():
            raise FaultError("a warp overwrites what another wrote, no barrier between", line)
        if self._read.others(at, warp, epoch).any():
            raise FaultError("a warp overwrites what another read, no barrier between", line)
        content[at] = values
        if (content[at] != values).any():
            raise FaultError("different values are written to one place at a time", line)
        self._written.note(at, warp, epoch)
        self._filled[at] = self._unseen[at] = True

    def begin_copy(self, places: Array, warps: Array, programs: Array, line: int) -> None:
        """Bytes at `places` `(threads, count)` are written from now on until `land`."""
        at, warp, epoch = places[:, ::2] >> 1, warps[:, None], self.epoch[programs][:, None]
        self._check_free(at, line)
        others = self._read.others(at, warp, epoch) | self._written.others(at, warp, epoch)
        if others.any():
            raise FaultError("a copy overwrites what another warp uses, no barrier between", line)
        self._bytes[places] = POISON
        self._arriving[at] = True

    def land(self, places: Array, values: Array, warps: Array, programs: Array) -> None:
        """The bytes of a copy that was waited for; visible to tensor cores without a fence."""
        at = places[:, ::2] >> 1
        self._bytes[places] = values
        self._arriving[at], self._filled[at], self._unseen[at] = False, True, False
        self._written.note(at, warps[:, None], self.epoch[programs][:, None])

    def fence(self) -> None:
        """What was written becomes visible to tensor cores that read by themselves; one thread's fence is all's."""
        self._unseen[:] = False

    def lend(self, places: Array, warps: Array, programs: Array, line: int) -> None:
        """Tensor cores read two bytes at each of `places` `(warps, count)` until `give_back`."""
        self.read(places, warps, programs, line)
        if self._unseen[places >> 1].any():
            raise FaultError("tensor cores read what no fence has made visible", line)
        self._leaving[places >> 1] = True

    def give_back(self, places: Array, warps: Array, programs: Array) -> None:
        """The tensor cores that read at `places` are done."""
        self._leaving[places >> 1] = False
        self._read.note(places >> 1, warps[:, None], self.epoch[programs][:, None])

    def _check_free(self, at: Array, line: int) -> None:
        if self._arriving[at].any():
            raise FaultError("shared memory is overwritten before a copy to it has landed", line)
        if self._leaving[at].any():
            raise FaultError("shared memory is overwritten that tensor cores still read", line)
