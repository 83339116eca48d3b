"""Freed memory of a CPU stays with the process, so that the next chunk finds it mapped."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_SIZE = (32 << 20) - (64 << 10)
"""Just under the largest block by which glibc raises its thresholds (`mallopt(3)`, `M_MMAP_THRESHOLD`)."""
_TRIM_THRESHOLD = -1
"""The parameter of that name in `mallopt(3)`."""
_MOST = (2 << 30) - 1
"""The largest value of a parameter."""
_SHARE = 8
"""The part of the machine's memory that training keeps is one in so many."""


@functools.cache
def keep() -> None:
    """Take and free one block of nearly 32 MiB, once in a process, without touching it; on glibc alone.

    From then on glibc takes smaller blocks from its heap and keeps up to 64 MiB of it, as it does after any program
    has freed a tensor of that size. Otherwise it hands the memory of a chunk back and has it mapped and cleared anew
    for the next: 7,000 to 13,000 page faults in a forward pass of the default model, 3 to 4 percent of its time on
    two cores of an Intel Xeon; none after this. Where thresholds are set by the environment they stay.
    """
    library = glibc()
    if library is not None:
        library.free(library.malloc(_SIZE))


@functools.cache
def keep_for_training() -> None:
    """`keep`, and an eighth of the machine's memory (2 GiB at most) stays with the process, once in it.

    What a training step keeps for its backward pass is freed in the end and taken again by the next step. By its
    thresholds glibc hands that back too: up to 90,000 page faults in a step (default model, 64x64, batch 2), 2 to 9
    percent of its time; none to 4,000 after this. Where the environment sets either threshold, that stays.
    """
    keep()
    library = glibc()
    told = [name for name in os.environ if name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")]
    if library is not None and not told and "_threshold" not in os.environ.get("GLIBC_TUNABLES", ""):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        library.mallopt(_TRIM_THRESHOLD, min(memory // _SHARE, _MOST))


def glibc() -> ctypes.CDLL | None:
    """The C library of the process where that is glibc; None elsewhere."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    return library
