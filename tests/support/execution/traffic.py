"""What the requests of warps to memory take: passes over the banks of shared memory, and sectors of global memory.

Shared memory has 32 banks of four bytes. A request of 16 bytes a lane is answered eight lanes at a time, of 8 bytes
sixteen; in one pass a bank gives one word, to any number of lanes. Global memory is moved in sectors of 32 bytes.
What tensor cores read by themselves is not counted: the swizzles of their operands have no conflicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.execution.memory import Array

LANES, BANKS, WORD, SECTOR = 32, 32, 4, 32
Counts = tuple[int, int, int]
_COUNTED: dict[tuple[Any, ...], Counts] = {}
MOST_KEPT = 20_000
"""Requests of different kinds whose counts are remembered."""


@dataclass
class Traffic:
    """Counted so far, of all programs of a kernel.

    Attributes:
        shared_requests: of warps to shared memory.
        shared_passes: that they take.
        least_shared_passes: that they would take without conflicts between lanes for banks.
        global_requests: of warps to global memory.
        sectors: that they touch.
        least_sectors: that would hold as many bytes.
    """

    shared_requests: int = 0
    shared_passes: int = 0
    least_shared_passes: int = 0
    global_requests: int = 0
    sectors: int = 0
    least_sectors: int = 0

    @property
    def conflicts(self) -> int:
        """Passes over the banks that only conflicts make."""
        return self.shared_passes - self.least_shared_passes

    def shared(self, places: Array, threads: Array, size: int) -> None:
        """A request of `threads` for `size` bytes at each of `places`."""
        requests, passes, least = _answered(_passes, places, threads, size, BANKS * WORD)
        self.shared_requests += requests
        self.shared_passes += passes
        self.least_shared_passes += least

    def whole(self, places: Array, threads: Array, size: int) -> None:
        """A request of `threads` for `size` bytes of global memory at each of `places`."""
        requests, sectors, least = _answered(_sectors, places, threads, size, SECTOR)
        self.global_requests += requests
        self.sectors += sectors
        self.least_sectors += least


def _answered(
    count: Callable[[Array, Array, int], Counts], places: Array, threads: Array, size: int, line: int
) -> Counts:
    """What `count` gives, counted once for all requests that lie alike within lines of so many bytes."""
    first = places.min()
    places = places - (first - first % line)
    key = (count, size, places.tobytes(), threads.tobytes())
    if key not in _COUNTED:
        if len(_COUNTED) > MOST_KEPT:
            _COUNTED.clear()
        _COUNTED[key] = count(places, threads, size)
    return _COUNTED[key]


def _passes(places: Array, threads: Array, size: int) -> Counts:
    """Requests of warps to shared memory, the passes that they take, and would without conflicts."""
    words = max(1, size // WORD)
    groups = threads // LANES * words + threads % LANES * words // LANES
    word = np.unique((groups[:, None].astype(np.int64) << 32) + places[:, None] // WORD + np.arange(words))
    used, group = np.unique(word >> 32, return_inverse=True)
    in_banks = np.bincount(group * BANKS + (word & 0xFFFFFFFF) % BANKS, minlength=len(used) * BANKS)
    passes = int(in_banks.reshape(-1, BANKS).max(1).sum())
    return len(np.unique(threads // LANES)), passes, int((-(-np.bincount(group) // BANKS)).sum())


def _sectors(places: Array, threads: Array, size: int) -> Counts:
    """Requests of warps to global memory, the sectors that they touch, and those that would hold as many bytes."""
    numbers, warp = np.unique(threads // LANES, return_inverse=True)
    sectors = np.unique((warp.astype(np.int64) << 48) + places // SECTOR)
    asked = np.unique((warp.astype(np.int64) << 48) + places)
    return len(numbers), len(sectors), int((-(-np.bincount(asked >> 48) * size // SECTOR)).sum())
