"""Memory: every load and store of every kernel traced, in six orders of the programs, between guard bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch
from septr_fast.kernels import launch
from support.kernels import attention_cases, pass_cases
from support.kernels.interpreter import permuted_programs
from support.kernels.token_grids import LAYOUTS, arranged
from support.kernels.tracing import Trace, TracedLaunch, trace_accesses
from torch import Tensor

from septr_fast.algebra.folded import Direct, LowRank, Merged
from septr_fast.passes.lengths import Lengths
from trust.outcome import Outcome, Progress
from trust.traced.guards import guarded_empty, touched
from trust.traced.needed import unlike

NAME = "memory"
WHAT = (
    "Every load and store of every kernel in drawn forward and backward passes: bounds to the element, addresses that "
    "two programs write or one writes and another reads, guard bands, poison in the results, the same bits in five "
    "other orders of the programs, and the distinct elements touched in all of a launch, by loads or stores, against "
    "those of its arguments that it needs: all, but for padding and what another launch of the same pass is for."
)
CANNOT = (
    "Races between the threads of a program, and what compiling makes of a kernel: this is Triton's interpreter. "
    "Where a launch has one program, as the last table counts, no order and no conflict of programs can be wrong. "
    "Whether an element is loaded that should be stored."
)

LONG, SHORT = 10_000, 200
"""Launches that are traced at least."""
ORDERS = 5
CPU = torch.device("cpu")
TILES = {**pass_cases.TILES, **attention_cases.tiles()}
MOST_TOKENS = 16
"""In a tile of normalization and MLP; of so few tokens that they would fill one, or little more, less."""

ATTENTION = tuple(f"attention, {name}" for name in attention_cases.FORMS)
KINDS = ("merged", "merged, fused", "direct", "low-rank", "class-only", *ATTENTION)


@dataclass
class Traced:
    """What was seen.

    Attributes:
        launches: that were traced, by kernel.
        several: those of more than one program.
        wrong: what is wrong.
        bytes_touched: loaded and stored, each as often as that.
    """

    launches: Counter[str] = field(default_factory=Counter)
    several: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    bytes_touched: int = 0


@dataclass
class Drawn:
    """A pass to run again and again.

    Attributes:
        name: with its sizes.
        step: gives results and gradients by name.
        tiles: of the kernels.
    """

    name: str
    step: Any
    tiles: dict[str, launch.Config]


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
        "launches of more than one program": seen.several.total(),
        "launches by kernel": [
            {"kernel": kernel, "launches": count, "of more than one program": seen.several[kernel]}
            for kernel, count in sorted(seen.launches.items())
        ],
    }
    return Outcome(seen.launches.total(), seen.wrong, figures)


def draw(number: int) -> Drawn:
    """The pass `number`, of the kinds in turn."""
    random, kind = Random(number), KINDS[number % len(KINDS)]
    torch.manual_seed(number)
    axis, length = random.choice(("height", "width")), random.choice((1, 2, 15, 16, 17, 18, 33))
    batch, rows = random.choice(((1, 1), (2, 1), (2, 1), (1, 3), (2, 2)))
    dtype = random.choice((torch.float32, torch.float16, torch.bfloat16))
    name = f"{number}: {kind}, {axis}, batch {batch}, {rows} rows, length {length}, {dtype}"
    if kind.startswith("attention"):
        form = attention_cases.FORMS[kind.removeprefix("attention, ")]
        shape = attention_cases.grid_shape(axis, length, rows, batch)
        inputs = attention_cases.draw(form, shape, random.choice((8, 16, 20)), CPU, dtype)
        inputs = inputs.changed(_layout(random))
        gradients = attention_cases.output_gradients(inputs, form.heads, axis)
        return Drawn(name, lambda: _attention(inputs, form.heads, axis, gradients), TILES)
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
    if random.random() < 0.4 and kind != "merged, fused":
        along = axis if kind != "low-rank" else ("width" if axis == "height" else "height")
        most = length if along == axis else rows
        valid = torch.tensor([random.randint(1, most) for _ in range(batch)])
        case = replace(case, lengths=Lengths(along, valid))
        name += f", padded along the {along} to {valid.tolist()}"
    tokens = MOST_TOKENS if batch * rows * length > MOST_TOKENS + 2 else random.choice((1, 2, 4))
    tiles = _tiles(tokens, random.choice((0, 1)))
    tiles["attention_form"] = launch.Config({"FUSED": int(kind == "merged, fused")})
    return Drawn(name, lambda: pass_cases.step(case, "triton", gradients), tiles)


def _tiles(tokens: int, reloads: int) -> dict[str, launch.Config]:
    """Tiles of `tokens` tokens in normalization and MLP, and of one sequence in the gradients of normalization.

    With `reloads` the gradients of the MLP read what they have written.
    """
    sizes = {"BLOCK_M": tokens, "BLOCK_H": 16}
    of_mlp = {name: launch.Config(sizes) for name in ("mlp_fwd", "mlp_fwd_wide")}
    of_mlp["mlp_bwd"] = launch.Config({**sizes, "RELOAD": reloads})
    backward = launch.Config({"BLOCK_L": 16, "SEQUENCES": 1})
    return {**TILES, **of_mlp, "normalize": launch.Config({"BLOCK_M": tokens}), "normalize_bwd": backward}


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
    permuted = permuted_programs(order) if order else nullcontext()
    with (
        launch.override(drawn.tiles),
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
        seen.several[traced.kernel] += one.programs > 1
        seen.wrong += [f"{drawn.name}: {one.name} {problem}" for problem in unlike(one, touched_addresses(traced))]
    return results


def _problems(trace: Trace, described: list[launch.Launch]) -> Iterator[str]:
    if not trace.launches:
        yield "no kernel was launched"
    if len(trace.launches) != len(described):
        yield f"{len(described)} launches, of which {len(trace.launches)} were traced"
    for traced in trace.launches:
        yield from traced.problems()


def touched_addresses(traced: TracedLaunch) -> np.ndarray:
    """The distinct addresses that a launch loaded or stored."""
    return np.union1d(traced.loads.addresses, traced.stores.addresses)


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
