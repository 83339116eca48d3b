"""Seconds on a GPU, of launches and operations, from what they ask its units for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from septr_fast.forecast.devices import COPIED, Device
from septr_fast.forecast.steps import Operation, Step
from septr_fast.forecast.work import QUARTERS, Work
from septr_fast.kernels.launch import Launch, ceil_div
from septr_fast.tuning.kernel_report import bytes_moved

LATENCY = 1500
"""Cycles from a program's start to its end in which none of its instructions can start, taken: two reads of memory."""
BETWEEN = 1.5e-6
"""Seconds between the end of a kernel and the next one's start in a stream, taken."""
CACHED = 0.5
"""Share of the L2 cache that operands may take and still be read from it."""


class Fit(NamedTuple):
    """What is not known of GPUs and is chosen so that published figures are met best: see `known.fitted`.

    Attributes:
        exposed: share of the way from the busiest unit's cycles to the sum of what warps do one after the other.
        cache_bytes: that a multiprocessor reads from the L2 cache in a cycle while all do.
    """

    exposed: float
    cache_bytes: float


class Cost(NamedTuple):
    """Seconds of one kernel, and what rules them."""

    seconds: float
    bound: str


@dataclass(frozen=True)
class Line:
    """All steps of one name.

    Attributes:
        name: of a kernel, or of an operation of PyTorch.
        count: how many.
        seconds: of all of them.
        bound: what rules the longest.
        cycles: by unit of one program of the longest; empty for an operation.
        resident: programs on a multiprocessor at a time.
    """

    name: str
    count: int
    seconds: float
    bound: str
    cycles: Mapping[str, float]
    resident: int


def of_kernel(launch: Launch, work: Work, device: Device, fit: Fit) -> Cost:
    """The time of one launch.

    What warps do one after the other takes the sum of it for a program that overlaps nothing, and as long as the
    busiest unit for one that overlaps all. Each takes the share `fit.exposed` of the difference, divided by how many go
    on beside one another: the programs on a multiprocessor, or, where products are instructions of single warps as on
    sm_80, the warps that share a quarter of it.

    Args:
        launch: with operands, which may be on the meta device.
        work: of one program.
        device: where it runs.
        fit: what is not known.
    """
    flops = launch.executed_flops / launch.programs
    cycles = work.cycles(device, fit.cache_bytes, flops)
    waited = work.waited_for(cycles, fit.cache_bytes)
    bound = max(cycles, key=lambda unit: cycles[unit])
    together = max(1, min(work.resident, ceil_div(launch.programs, device.multiprocessors)))
    others = max(0.0, sum(waited) - cycles[bound])
    beside = max(1.0, together * launch.config.warps / QUARTERS) if work.old > work.products / 2 else together
    program = cycles[bound] + fit.exposed * others / beside + LATENCY / together
    rounds = ceil_div(launch.programs, device.multiprocessors * together)
    busy = rounds * together * program / device.clock
    moving = _moving(bytes_moved(launch), device, fit)
    return Cost(max(busy, moving) + BETWEEN, "memory" if moving > busy else bound)


def of_operation(operation: Operation, device: Device, fit: Fit) -> Cost:
    """The time of one operation of PyTorch, by the rate that the vendor's library attains in large products."""
    lanes = device.multiprocessors * 128 * device.plain * 2 * device.clock
    rate = max(lanes, operation.share * device.peak)
    computing = operation.flops / (rate * device.products)
    moving = _moving(operation.moved, device, fit)
    return Cost(max(computing, moving) + BETWEEN, "memory" if moving > computing else "products")


def _moving(moved: int, device: Device, fit: Fit) -> float:
    """Seconds of reading and writing so many bytes once."""
    if moved < CACHED * device.cache:
        return moved / (fit.cache_bytes * device.multiprocessors * device.clock)
    return moved / (device.memory * COPIED)


def lines(found: Sequence[Step], works: Mapping[int, Work], device: Device, fit: Fit) -> list[Line]:
    """What all steps take, by name, the longest first.

    Args:
        found: what a pass asks for.
        works: of launches, by their place among the steps.
        device: where they run.
        fit: what is not known.
    """
    grouped: dict[str, list[tuple[Cost, int]]] = {}
    for place, step in enumerate(found):
        if isinstance(step, Launch):
            cost = of_kernel(step, works[place], device, fit)
        else:
            cost = of_operation(step, device, fit)
        grouped.setdefault(step.name, []).append((cost, place))
    result = []
    for name, costs in grouped.items():
        cost, place = max(costs, key=lambda one: one[0].seconds)
        step, work = found[place], works.get(place)
        cycles = {}
        if isinstance(step, Launch) and work is not None:
            cycles = work.cycles(device, fit.cache_bytes, step.executed_flops / step.programs)
        seconds = sum(one.seconds for one, _ in costs)
        result.append(Line(name, len(costs), seconds, cost.bound, cycles, work.resident if work else 0))
    return sorted(result, key=lambda line: -line.seconds)


def total(found: Iterable[Line]) -> float:
    """Seconds of all."""
    return sum(line.seconds for line in found)
