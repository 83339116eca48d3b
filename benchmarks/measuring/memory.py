"""Memory that a call takes: what PyTorch's allocators hand out, on a CPU and on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from septr_fast.passes.torch.freed_memory import glibc

MOST = 4096
"""Spectrograms in a largest batch; more are not tried."""


class Memory(NamedTuple):
    """Bytes beyond what was allocated before.

    Attributes:
        peak: the most at any moment of the call.
        kept: at its end, while its result is still there.
    """

    peak: int
    kept: int


def memory(call: Callable[[], Any], device: torch.device) -> Memory:
    """Run `call` once and watch the allocator.

    On a CPU its events come from PyTorch's profiler; what a library allocates on its own is out of sight.
    """
    if device.type == "cuda":
        return _of_cuda(call, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    sizes = [size for _, size in sorted((event.start_ns(), event.nbytes()) for event in events)]
    del result
    held = [0, *accumulate(sizes)]
    return Memory(max(held), held[-1])


def _of_cuda(call: Callable[[], Any], device: torch.device) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    found = Memory(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)
    del result
    return found


def give_back() -> None:
    """Hand the memory that is free back to the system, where the C library is glibc.

    A model that runs after a larger one would find the other's memory mapped, and spare the page faults that it has
    in a process of its own: a million in a training step of the reference (default model, 64x64, batch 2), which took
    2.3 s after one at 128x128 instead of 2.8.
    """
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


def largest_batch(peak: Callable[[int], int | None], limit: int) -> int:
    """The largest batch whose `peak(batch)` bytes are within `limit`; 0 where one sample is too much.

    Doubles the batch until it is too large, then closes in by straight lines between what was measured, or by
    halves where the device has not the memory to measure it (None), until a batch fits and the next does not.
    At most `MOST`.
    """
    fits, fitting = 0, 0
    fails, failing = 1, peak(1)
    while failing is not None and failing <= limit and fails < MOST:
        fits, fitting = fails, failing
        fails *= 2
        failing = peak(fails)
    if failing is not None and failing <= limit:
        return fails
    while fits and fails - fits > 1:
        if failing is None:
            guess = (fits + fails) // 2
        else:
            guess = fits + (limit - fitting) * (fails - fits) // max(failing - fitting, 1)
        guess = min(max(guess, fits + 1), fails - 1)
        found = peak(guess)
        if found is not None and found <= limit:
            fits, fitting = guess, found
        else:
            fails, failing = guess, found
    return fits
