"""Memory that a call takes: what PyTorch's allocators hand out, on a CPU and on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


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


def largest_batch(peak: Callable[[int], int], limit: int) -> int:
    """The largest batch whose `peak(batch)` bytes are within `limit`; 0 where one sample is too much.

    The peak grows nearly in proportion to the batch: the first guess follows from batches of one and two, and
    every guess is measured, until a batch fits and the next does not.
    """
    one = peak(1)
    if one > limit:
        return 0
    step = max(1, peak(2) - one)
    known = {1: True}
    guess = max(1, 1 + (limit - one) // step)
    while True:
        for batch in (guess, guess + 1):
            if batch not in known:
                known[batch] = peak(batch) <= limit
        if known[guess] and not known[guess + 1]:
            return guess
        guess += 1 if known[guess] else -1
