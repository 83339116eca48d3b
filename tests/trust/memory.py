"""Memory: every load and store of every kernel traced, in six orders of the programs, between guard bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from unittest import mock

import attention_cases
import numpy as np
import pass_cases
import torch
from interpreter import permuted_programs
from septr_fast.kernels import launch
from token_grids import LAYOUTS, arranged
from torch import Tensor
from tracing import Trace, TracedLaunch, trace_accesses

from septr_fast.folding import Direct, LowRank, Merged
from septr_fast.kernel_report import bytes_moved
from septr_fast.lengths import Lengths
from trust.guards import guarded_empty, touched
from trust.outcome import Outcome, Progress

NAME = "memory"
WHAT = (
    "Every load and store of every kernel in drawn forward and backward passes: bounds to the element, addresses that "
    "two programs write or one writes and another reads, guard bands, poison in the results, the same bits in five "
    "other orders of the programs, and the bytes that are touched against the tensors' sizes."
)
CANNOT = "Races between the threads of a program, and what compiling makes of a kernel: this is Triton's interpreter."

LONG, SHORT = 10_000, 200
"""Launches that are traced at least."""
ORDERS = 5
CPU = torch.device("cpu")
TILES = {**pass_cases.TILES, **attention_cases.tiles()}
TOUCH_ALL = {
    "normalize",
    "normalize_bwd",
    "mlp_fwd",
    "mlp_fwd_wide",
    "mlp_bwd",
    "axis_attention_fwd",
    "class_query_fwd",
    "class_attention_fwd",
    "fused_attention_fwd",
}
"""Kernels that touch every element of their tensors, where no sample is padded."""

ATTENTION = tuple(f"attention, {name}" for name in attention_cases.FORMS)
KINDS = ("merged", "merged, fused", "direct", "low-rank", "class-only", *ATTENTION)


@dataclass
class Traced:
    """What was seen.

    Attributes:
        launches: that were traced, by kernel.
        exact: those whose touched bytes were compared with the tensors' sizes.
        wrong: what is wrong.
        bytes_touched: loaded and stored, each as often as that.
    """

    launches: Counter[str] = field(default_factory=Counter)
    exact: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    bytes_touched: int = 0


@dataclass
class Drawn:
    """A pass to run again and again.

    Attributes:
        name: with its sizes.
        step: gives results and gradients by name.
        fused: whether attention and its projections are one kernel.
        padded: whether samples are.
    """

    name: str
    step: Any
    fused: bool
    padded: bool


def run(full: bool, progress: Progress) -> Outcome:
    """Draw passes of every kind in turn until enough launches were traced, and every kernel was."""
    seen, number = Traced(), 0
    while seen.launches.total() < (LONG if full else SHORT) or number < len(KINDS) - len(ATTENTION):
        before = seen.launches.total()
        trace_case(draw(number), seen, ORDERS)
        progress(seen.launches.total() - before)
        number += 1
    figures = {
        "passes drawn": number,
        "launches traced": seen.launches.total(),
        "orders of programs": 1 + ORDERS,
        "bytes touched": seen.bytes_touched,
        "launches whose bytes were compared with the tensors' sizes": seen.exact.total(),
        "launches by kernel": dict(sorted(seen.launches.items())),
    }
    return Outcome(seen.launches.total(), seen.wrong, figures)


def draw(number: int) -> Drawn:
    """The pass `number`, of the kinds in turn."""
    random, kind = Random(number), KINDS[number % len(KINDS)]
    torch.manual_seed(number)
    axis, length = random.choice(("height", "width")), random.choice((1, 2, 15, 16, 17, 18, 33))
    batch, rows = random.choice(((1, 1), (1, 2), (2, 1), (2, 2), (1, 3)))
    dtype = random.choice((torch.float32, torch.float16, torch.bfloat16))
    name = f"{number}: {kind}, {axis}, batch {batch}, {rows} rows, length {length}, {dtype}"
    if kind.startswith("attention"):
        form = attention_cases.FORMS[kind.removeprefix("attention, ")]
        shape = attention_cases.grid_shape(axis, length, rows, batch)
        inputs = attention_cases.draw(form, shape, random.choice((8, 16, 20)), CPU, dtype)
        inputs = inputs.changed(_layout(random))
        gradients = attention_cases.output_gradients(inputs, form.heads, axis)
        return Drawn(name, lambda: _attention(inputs, form.heads, axis, gradients), False, False)
    classes = {"direct": Direct, "class-only": Direct, "low-rank": LowRank}
    sizes = {"heads": random.randint(1, 3), "dim_head": random.choice((4, 12)), "dim": random.choice((8, 12, 24))}
    sizes |= {"mlp_dim": random.choice((8, 17, 40)), "channels": random.choice((1, 2, 3)) if kind == "low-rank" else 1}
    case = pass_cases.draw(
        classes.get(kind, Merged),
        axis,
        CPU,
        dtype,
        shape=(batch, rows, length),
        class_only=kind == "class-only",
        **sizes,
    )
    change = _layout(random)
    case.tensors.update({key: change(x) for key, x in case.tensors.items() if x.dim() == 4})
    gradients = case.output_gradients()
    padded = random.random() < 0.4 and kind != "merged, fused"
    if padded:
        along = axis if kind != "low-rank" else ("width" if axis == "height" else "height")
        most = length if along == axis else rows
        valid = torch.tensor([random.randint(1, most) for _ in range(batch)])
        case = replace(case, lengths=Lengths(along, valid))
    return Drawn(name, lambda: pass_cases.step(case, "triton", gradients), kind == "merged, fused", padded)


def _layout(random: Random) -> Any:
    """Other strides for grids; those whose rows repeat are for reading alone, as all of these are."""
    layout = random.choice(LAYOUTS)
    return lambda x: arranged(x, layout) if x.dim() == 4 else x


def _attention(inputs: Any, heads: int, axis: str, gradients: Any) -> dict[str, Tensor]:
    return attention_cases.step(attention_cases.axis_attention, inputs, heads, axis, gradients)


def trace_case(drawn: Drawn, seen: Traced, orders: int) -> None:
    """Run a pass in the usual order of the programs and in others, and add what is seen."""
    expected: dict[str, Tensor] = {}
    for order in range(1 + orders):
        results = _traced(drawn, seen, order)
        unwritten = [name for name, x in results.items() if not bool(x.isfinite().all())]
        seen.wrong += [f"{drawn.name}: poison in {name}" for name in unwritten]
        if order == 0:
            expected = results
        differs = [name for name, x in results.items() if not _same_bits(x, expected[name])]
        seen.wrong += [f"{drawn.name}: other bits in {name} in order {order}" for name in differs]


def _traced(drawn: Drawn, seen: Traced, order: int) -> dict[str, Tensor]:
    fused = launch.Config({"FUSED": int(drawn.fused)})
    permuted = permuted_programs(order) if order else nullcontext()
    with (
        launch.override({**TILES, "attention_form": fused}),
        described_launches() as described,
        permuted,
        trace_accesses() as trace,
        guarded_empty() as given,
    ):
        results: dict[str, Tensor] = drawn.step()
    seen.wrong += [f"{drawn.name}: {problem}" for problem in (*_problems(trace, described), *touched(given))]
    for traced, one in zip(trace.launches, described, strict=True):
        seen.launches[traced.kernel] += 1
        seen.bytes_touched += traced.loads.total_bytes + traced.stores.total_bytes
        if one.name.removesuffix("_direct") in TOUCH_ALL and not drawn.padded:
            seen.exact[traced.kernel] += 1
            found, expected = touched_bytes(traced), bytes_moved(one)
            if found != expected:
                seen.wrong.append(f"{drawn.name}: {one.name} touches {found} bytes, its tensors have {expected}")
    return results


def _problems(trace: Trace, described: list[launch.Launch]) -> Iterator[str]:
    if not trace.launches:
        yield "no kernel was launched"
    if len(trace.launches) != len(described):
        yield f"{len(described)} launches, of which {len(trace.launches)} were traced"
    for traced in trace.launches:
        yield from traced.problems()


def touched_bytes(traced: TracedLaunch) -> int:
    """Bytes of the distinct addresses that a launch loaded or stored."""
    both = np.intersect1d(traced.loads.addresses, traced.stores.addresses).size
    width = traced.stores.total_bytes // max(1, traced.stores.addresses.size)
    return traced.loads.unique_bytes + traced.stores.unique_bytes - both * width


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.contiguous().flatten().view(torch.uint8).equal(other.contiguous().flatten().view(torch.uint8))


@contextmanager
def described_launches() -> Iterator[list[launch.Launch]]:
    """What is launched inside, in order."""
    described: list[launch.Launch] = []
    run = launch.run

    def noting(one: launch.Launch, device: torch.device) -> None:
        described.append(one)
        run(one, device)

    with mock.patch.object(launch, "run", noting):
        yield described
