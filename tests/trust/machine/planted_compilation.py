"""Kernels whose compiled code is otherwise than asked in one way each; run as a program, judges them.

Compiling needs a process in which Triton does not interpret.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Config, Launch
from septr_fast.kernels.rounding import dot

from septr_fast.tuning.kernel_report import Case
from trust.machine import compiling

ARCHITECTURE = 80


@triton.jit
def planted_kernel(x_ptr, y_ptr, FAULT: tl.constexpr, WIDTH: tl.constexpr):
    offs = tl.arange(0, WIDTH)
    tile = offs[:, None] * WIDTH + offs[None, :]
    # (WIDTH, WIDTH)
    x = tl.load(x_ptr + tile)
    if FAULT == "precision dropped":
        y = tl.dot(x, x)
    elif FAULT == "rounded operands":
        y = dot(x.to(tl.float16), x.to(tl.float16))
    elif FAULT == "half sums":
        y = tl.dot(x, x, input_precision="ieee", out_dtype=tl.float16)
    else:
        y = dot(x, x)
    y = y.to(tl.float32)
    if FAULT == "approximate":
        y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [y], dtype=tl.float32, is_pure=True, pack=1)
    elif FAULT == "half arithmetic":
        y = (y.to(tl.float16) * y.to(tl.float16)).to(tl.float32)
    elif FAULT == "rounded apart":
        y = tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $1;", "=r,r", [y], dtype=tl.float32, is_pure=True, pack=1)
    elif FAULT == "contracted across lanes":
        row = tl.load(x_ptr + offs)
        y += tl.sum(row * row, 0)
    else:
        y = y * y + y
    tl.store(y_ptr + tile, y)


FAULTS = {
    "none": "float32",
    "none, float16": "float16",
    "precision dropped": "float32",
    "contracted across lanes": "float32",
    "rounded operands": "float32",
    "half sums": "float16",
    "approximate": "float32",
    "half arithmetic": "float32",
    "rounded apart": "float32",
}
"""The dtype of the case in which each fault is planted."""


def planted(fault: str, dtype: str) -> compiling.Work:
    """A product of `(32, 32)` values with themselves."""
    x = torch.empty(32, 32, dtype=torch.float16 if dtype == "float16" else torch.float32, device="meta")
    arguments = {"x_ptr": x, "y_ptr": torch.empty(32, 32, device="meta"), "FAULT": fault, "WIDTH": 32}
    described = Launch(fault, planted_kernel, 1, arguments, Config({}), 1, 1)
    return compiling.Work(Case("planted", dtype, ARCHITECTURE), described, fault)


def shipped() -> compiling.Work:
    """A kernel of the project, with products, as it is launched."""
    case, launches = next(iter(compiling.recorded(full=False)))
    return compiling.Work(case, next(one for one in launches if one.name == "mlp_bwd"), "shipped")


def judgements() -> Iterator[dict[str, Any]]:
    """Each fault by name, with what is found wrong."""
    work = shipped()
    few_warps = replace(work.launch, config=Config({"BLOCK_M": 64, "BLOCK_H": 16}, 1))
    works = {fault: planted(fault, dtype) for fault, dtype in FAULTS.items()}
    works["spilling"] = replace(work, launch=few_warps)
    for fault, told in zip(works, compiling.judged(list(works.values())), strict=True):
        yield {"fault": fault, "wrong": told["wrong"]}
    options = launch._options
    for fault, changed in CHANGES.items():
        with mock.patch.object(launch, "_options", lambda config, changed=changed: changed(options(config))):
            yield {"fault": fault, "wrong": compiling.unsaid(work.case, work.launch)}
    with mock.patch.object(launch, "_options", lambda config: barred(options(config))):
        yield {
            "fault": "contraction barred, compiled",
            "wrong": compiling.both_ways(planted("none", "float32"))["wrong"],
        }


def unsaid(options: dict[str, Any]) -> dict[str, Any]:
    """Options that say nothing of contraction."""
    return {name: value for name, value in options.items() if name != "enable_fp_fusion"}


def barred(options: dict[str, Any]) -> dict[str, Any]:
    """Options that bar contraction."""
    return {**options, "enable_fp_fusion": False}


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "contraction unsaid": unsaid,
    "contraction barred": barred,
}


def main() -> None:
    """Print what is found, one object a line."""
    for told in judgements():
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
