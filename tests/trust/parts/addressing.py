"""Addressing: every kernel with each of its strided tensors spread over more than 2³¹ elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from septr_fast.kernels import launch
from support.kernels import attention_cases, pass_cases
from support.kernels.far_attention import FAR
from support.kernels.tracing import trace_accesses
from torch import Tensor
from triton.runtime.errors import InterpreterError

from septr_fast.algebra.folded import Direct, LowRank, Merged
from septr_fast.passes.lengths import Lengths
from trust.far import far_parts
from trust.outcome import Outcome, Progress

NAME = "addressing"
WHAT = (
    "Launches of every kernel, forward and backward, repeated with one tensor's one dimension spread out so that its "
    "places are more than 2³¹ elements apart: the same bits, every access at an element, no 32-bit overflow. Every "
    "packed buffer of theirs with more than 2³¹ elements, where the last program of the first sequence or block of "
    "tokens and that of the last leave the same."
)
CANNOT = (
    "Two tensors or dimensions spread out at once; packed buffers that are large by their heads, features or, but for "
    "the coefficients of the low-rank pass, the length of a sequence; the slopes of that pass from channel to "
    "channel, which are made contiguous; so many samples that the numbers of their valid tokens lie 2³¹ apart."
)

CPU = torch.device("cpu")
CLOSE = frozenset({("slope_ptr", 0)})
"""Dimensions of tensors that their launcher makes contiguous."""
ROOM = 1 << 14
"""Elements behind the far places."""


@dataclass(frozen=True)
class Moment:
    """A launch, and its tensors as they were before it ran.

    Attributes:
        name: of the launch, with the form that it has.
        described: the launch.
        tensors: copies by the names of the arguments, with their strides.
    """

    name: str
    described: launch.Launch
    tensors: dict[str, Tensor]


def run(full: bool, progress: Progress) -> Outcome:
    """Spread every dimension of every strided tensor; in the short form one of each, on fewer sequences."""
    wrong: list[str] = []
    tried: Counter[str] = Counter()
    count = 3 if full else 1
    for moment in (*moments(rows=count, heads=count), *in_slices(rows=count, heads=count)):
        name = moment.name
        expected = replayed(moment, moment.tensors)[0]
        for pointer, dimension in places(moment, every=full):
            tried[name] += 1
            found = fault(moment, expected, pointer, dimension)
            wrong += [] if found is None else [f"{name}, {pointer} spread out in dimension {dimension}: {found}"]
            progress(1)
        if moment.described.name in far_parts.KERNELS:
            tried[f"{name}, parts"] += 1
            found = far_parts.fault(moment.described, moment.tensors)
            wrong += [] if found is None else [f"{name}: {found}"]
            progress(1)
    figures = {"elements between two places": FAR, "launches by kernel": dict(sorted(tried.items()))}
    return Outcome(tried.total(), wrong, figures)


def moments(rows: int, heads: int) -> list[Moment]:
    """One launch of every name, out of small passes of every kind.

    Three places in a dimension have a stride that fits 32 bits, and products that do not; of one there is nothing to
    spread. Gradients of the results are not contiguous, so that the MLP's backward pass copies that of the grid. With
    two heads a part of the smallest packed buffer is large enough that the number of parts stays far below 2³¹.
    """
    sizes: dict[str, Any] = {"shape": (3, rows, 3), "heads": heads, "dim_head": 4, "dim": 8, "mlp_dim": 8}
    several: dict[str, Any] = {"heads": max(2, heads)}
    low_rank: dict[str, Any] = {**several, "channels": 3}
    padded = Lengths("width", torch.tensor([3, 2, 3]))
    kinds: list[tuple[str, Any, dict[str, Any], Lengths | None, bool]] = [
        ("", Merged, {}, None, True),
        ("", Merged, {}, None, False),
        ("", Direct, {}, padded, False),
        ("", LowRank, low_rank, None, False),
        (", one sequence", LowRank, {**low_rank, "shape": (1, 1, 3)}, None, False),
        ("", Direct, {**several, "class_only": True}, padded, False),
    ]
    found: dict[str, Moment] = {}
    for of, kind, changes, lengths, fused in kinds:
        torch.manual_seed(0)
        whole = pass_cases.draw(kind, "width", CPU, **{**sizes, **changes})
        case = replace(whole, lengths=lengths)
        gradients = {name: x.repeat_interleave(2, -1)[..., ::2] for name, x in whole.output_gradients().items()}
        form = {"attention_form": launch.Config({"FUSED": int(fused)})}
        with launch.override({**pass_cases.TILES, **form}), remembered(found, of):
            pass_cases.step(case, "triton", gradients)
    return list(found.values())


def in_slices(rows: int, heads: int) -> list[Moment]:
    """A launch of attention that sums up the features of a token in slices."""
    found: dict[str, Moment] = {}
    torch.manual_seed(0)
    case = pass_cases.draw(Direct, "width", CPU, shape=(3, rows, 3), heads=heads, dim_head=20, dim=8, mlp_dim=8)
    with launch.override({**pass_cases.TILES, **attention_cases.tiles(block_c=16)}), remembered(found, ", in slices"):
        case.run("triton")
    return [moment for moment in found.values() if moment.described.name.startswith("axis_attention_fwd")]


@contextmanager
def remembered(found: dict[str, Moment], of: str) -> Iterator[None]:
    """Keep the first launch of each name, `of` its end, with copies of its tensors."""
    run_kernel = launch.run

    def remembering(described: launch.Launch, device: torch.device) -> None:
        name = described.name + _form(described.arguments) + of
        if name not in found:
            tensors = {argument: x for argument, x in described.arguments.items() if isinstance(x, Tensor)}
            found[name] = Moment(name, described, {argument: _copied(x) for argument, x in tensors.items()})
        run_kernel(described, device)

    with mock.patch.object(launch, "run", remembering):
        yield


def _form(arguments: Mapping[str, Any]) -> str:
    """What a launch does beside others of its name."""
    apart = "" if arguments.get("SHARED", True) else ", values apart"
    return apart + ("" if arguments.get("rounded_ptr") is None else ", gradient copied")


def _copied(x: Tensor) -> Tensor:
    """A copy in the same strides; poison where nothing was written yet."""
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    return copy.copy_(x.detach()) if 0 not in x.stride() else x.detach()


def places(moment: Moment, *, every: bool) -> Iterator[tuple[str, int]]:
    """Tensors whose strides the kernel is told, and their dimensions of more than one place, or one of them in turn.

    A dimension that is expanded, whose places are one, is among them: spread out, each holds the same values. One of
    `CLOSE` is not.
    """
    for number, (pointer, tensor) in enumerate(moment.tensors.items()):
        strides = moment.described.arguments.get(f"{pointer.removesuffix('_ptr')}_strides")
        if strides is None or tuple(strides) != tensor.stride():
            continue
        wide = [at for at, size in enumerate(tensor.shape) if size > 1 and (pointer, at) not in CLOSE]
        chosen = wide if every or not wide else [wide[number % len(wide)]]
        yield from ((pointer, dimension) for dimension in chosen)


def fault(moment: Moment, expected: dict[str, Tensor], pointer: str, dimension: int) -> str | None:
    """What is wrong where a tensor is spread out, or None."""
    far = spread(moment.tensors[pointer], dimension)
    try:
        found, problems = replayed(moment, {**moment.tensors, pointer: far})
    except InterpreterError as error:
        return str(error)
    if problems:
        return "; ".join(problems)
    differs = [name for name, x in found.items() if not _same(x, expected[name])]
    return f"other values in {', '.join(differs)}" if differs else None


def spread(x: Tensor, dimension: int) -> Tensor:
    """A copy of `x` whose places along `dimension` lie over `FAR` elements."""
    packed = list(torch.empty(x.shape, device="meta").stride())
    packed[dimension] = FAR // (x.shape[dimension] - 1)
    memory = torch.empty(FAR + ROOM, dtype=x.dtype)
    assert x.numel() < ROOM, x.shape
    return memory.as_strided(x.shape, packed).copy_(x)


def replayed(moment: Moment, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors after the launch on copies of `tensors`, and what its accesses have wrong.

    What lies far apart is not copied, and is used up.
    """
    own = {name: x if _is_far(x) else _copied(x) for name, x in tensors.items()}
    strides = {f"{name.removesuffix('_ptr')}_strides": x.stride() for name, x in own.items() if _is_far(x)}
    arguments = {**moment.described.arguments, **own, **strides}
    with trace_accesses() as trace:
        launch.run(replace(moment.described, arguments=arguments), CPU)
    return own, [problem for traced in trace.launches for problem in traced.problems()]


def _is_far(x: Tensor) -> bool:
    return x.untyped_storage().nbytes() > FAR


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
