"""Packed buffers of more than 2³¹ elements, into which each program writes a part of its own.

No stride can spread them. So a launch is stretched to as many programs as fill them, all of which read the same
operands, and the first and the last alone are run: they have to leave the same part, each in its place. What is never
touched of a buffer takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from far_attention import FAR
from septr_fast.kernels import launch
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

CPU = torch.device("cpu")
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Stretched:
    """How a launch grows with the number of its parts.

    Attributes:
        elements: of a part, by the argument that holds the parts.
        others: elements for each part in further buffers, which are read and written.
        same: arguments whose strides of sample and row become zero.
        grown: other arguments, by the number of parts.
        programs: for each part.
    """

    elements: dict[str, int]
    others: dict[str, int]
    same: tuple[str, ...]
    grown: Callable[[int], Arguments]
    programs: int


def _normalize(given: Arguments) -> Stretched:
    block = given["BLOCK_M"]
    return Stretched({"hat_ptr": block * given["WIDTH"]}, {}, ("x",), lambda parts: {"tokens": parts * block}, 1)


def _normalize_bwd(given: Arguments) -> Stretched:
    return Stretched(
        {"partial_ptr": given["length"] * given["WIDTH"]},
        {},
        ("grad_hat", "x", "residual_grad", "grad_x"),
        lambda parts: {"sequences": parts * given["SEQUENCES"]},
        given["blocks"],
    )


def _slices(given: Arguments, parts: int) -> Arguments:
    return {"slices": parts, "rows": parts * given["ROWS"]}


def _class_key_bwd(given: Arguments) -> Stretched:
    token = given["heads"] * given["WIDTH"]
    return Stretched(
        {"cls_part_ptr": given["WIDTH"], "query_part_ptr": given["parts"] * token},
        {"delta_ptr": given["ROWS"] * given["heads"]},
        ("grad_attended", "attended", "statistics"),
        lambda parts: _slices(given, parts),
        1,
    )


def _class_attention_bwd(given: Arguments) -> Stretched:
    return Stretched(
        {
            "pos_part_ptr": given["length"] * given["WIDTH"],
            "query_part_ptr": (given["blocks"] + 1) * given["heads"] * given["WIDTH"],
        },
        {"delta_ptr": given["ROWS"] * given["heads"]},
        ("grad_attended", "grid", "statistics", "grad_grid"),
        lambda parts: _slices(given, parts),
        given["blocks"],
    )


KERNELS: dict[str, Callable[[Arguments], Stretched]] = {
    "normalize": _normalize,
    "normalize_bwd": _normalize_bwd,
    "class_key_bwd": _class_key_bwd,
    "class_attention_bwd": _class_attention_bwd,
}


def fault(described: launch.Launch, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the last part of a launch of `KERNELS` that has more than 2³¹ elements in parts, or None."""
    stretched = KERNELS[described.name]({**described.arguments, **described.config.tiles})
    last = _last_part(stretched, described.arguments)
    sizes = {**stretched.elements, **stretched.others}
    buffers = {name: _first_and_last_zero(1 + last, size, tensors[name].dtype) for name, size in sizes.items()}
    strides = {f"{name}_strides": _of_one_row(described.arguments[f"{name}_strides"]) for name in stretched.same}
    given = {name: _finite(x) for name, x in tensors.items()}
    arguments = {**described.arguments, **given, **buffers, **strides, **stretched.grown(1 + last)}
    try:
        for part in (0, last):
            with _only(part * stretched.programs):
                launch.run(replace(described, programs=1, arguments=arguments), CPU)
    except InterpreterError as error:
        return str(error)
    differs = [
        name
        for name, size in stretched.elements.items()
        if not torch.equal(buffers[name][:size], buffers[name][last * size :]) or not buffers[name][:size].any()
    ]
    return f"other values in the last part of {', '.join(differs)}" if differs else None


def _last_part(stretched: Stretched, arguments: Arguments) -> int:
    """The first with an element beyond `FAR`, at the same positions of a sequence as part 0."""
    parts, length = -(-FAR // max(stretched.elements.values())), arguments.get("length", 1)
    return (parts // length + 1) * length


def _first_and_last_zero(parts: int, elements: int, dtype: torch.dtype) -> Tensor:
    """Memory for all parts, of which the first and the last alone are touched."""
    buffer = torch.empty(parts * elements, dtype=dtype)
    buffer[:elements] = 0
    buffer[-elements:] = 0
    return buffer


def _of_one_row(strides: tuple[int, ...]) -> tuple[int, ...]:
    return 0, 0, *strides[2:]


def _finite(x: Tensor) -> Tensor:
    """A copy in the same strides, one in the place of what is not a number."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x.nan_to_num(1.0))


@contextmanager
def _only(program: int) -> Iterator[None]:
    """Let a launch of one program be that of another number."""

    def set_program(self: Any, *_: int) -> None:
        self.grid_idx = (program, 0, 0)

    with mock.patch.object(InterpreterBuilder, "set_grid_idx", set_program):
        yield
