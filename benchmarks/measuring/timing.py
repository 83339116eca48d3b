"""Clocks: CUDA events on a GPU, the processor's clock elsewhere; and the time that is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Call = Callable[[], Any]


class Budget:
    """Seconds for a stage.

    Attributes:
        left_out: all that was left out, with the reason.
        unfinished: what of it was left out for want of time.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.left_out: list[str] = []
        self.unfinished: list[str] = []

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def part(self, share: float) -> Budget:
        """A budget of `share` of the seconds that are left; what is left out for want of them is noted here too."""
        part = Budget(share * self.left)
        part.left_out, part.unfinished = self.left_out, self.unfinished
        return part

    def cut(self, what: str) -> None:
        """Note `what` there was no time for."""
        self.left_out.append(f"{what}: no time")
        self.unfinished.append(what)

    def allows(self, what: str, seconds: float = 0.0) -> bool:
        """Whether there is time for `what`, which may take `seconds`; noted where there is not."""
        if self.left > seconds:
            return True
        self.cut(what)
        return False


def seconds(call: Call, device: torch.device) -> float:
    """Time of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def interleaved(calls: Mapping[str, Call], device: torch.device, rounds: int, limit: float) -> dict[str, list[float]]:
    """Time every call once a round, until `rounds` are done or `limit` seconds are over; at least once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + limit
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
        if time.monotonic() > end:
            break
    return times


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(times: list[float]) -> dict[str, float | int]:
    """Median, quartiles and number of times."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"seconds": middle, "lower_quartile": low, "upper_quartile": high, "calls": len(times)}
