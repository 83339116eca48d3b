"""Kernels that fall short of the report's demands in one way each; run as a program, reports on them.

Compiling needs a process in which Triton does not interpret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from septr_fast.kernels.launch import Config, Launch
from septr_fast.kernels.mlp import mlp_fwd_kernel

from septr_fast.commands import kernels as kernels_command
from septr_fast.tuning import compiled, kernel_launches

ARCHITECTURES = (80, 90, 100)


@triton.jit
def product_kernel(
    x_ptr, weight_ptr, y_ptr, stride_x, tokens, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, WIDTH)
    offs_n = tl.arange(0, BLOCK_N)
    # (BLOCK_M, WIDTH)
    x = tl.load(x_ptr + offs_m[:, None] * stride_x + offs_k[None, :], mask=(offs_m < tokens)[:, None], other=0.0)
    # (WIDTH, BLOCK_N)
    weight = tl.load(weight_ptr + offs_k[:, None] * BLOCK_N + offs_n[None, :])
    # (BLOCK_M, BLOCK_N)
    y = tl.dot(x, weight)
    tl.store(y_ptr + offs_m[:, None] * BLOCK_N + offs_n[None, :], y, mask=(offs_m < tokens)[:, None])


@triton.jit
def sum_kernel(x_ptr, y_ptr, WIDTH: tl.constexpr):
    # (WIDTH,)
    x = tl.load(x_ptr + tl.arange(0, WIDTH)).to(tl.float32)
    tl.store(y_ptr + tl.program_id(0), tl.sum(x))


@triton.jit
def wrong_kernel(x_ptr, WIDTH: tl.constexpr):
    # (WIDTH,)
    x = tl.load(x_ptr + tl.arange(0, WIDTH))
    tl.store(x_ptr + tl.arange(0, 2 * WIDTH), x)


def product(
    name: str, width: int, tile: tuple[int, int], warps: int, x: torch.Tensor | None = None, **overrides: Any
) -> Launch:
    """A product of `(256, width)` values and a weight `(width, tile[1])`."""
    if x is None:
        x = torch.empty(256, width, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(width, tile[1], dtype=torch.bfloat16, device="meta")
    y = torch.empty(256, tile[1], dtype=torch.bfloat16, device="meta")
    arguments = {"x_ptr": x, "weight_ptr": weight, "y_ptr": y, "stride_x": x.stride(0), "tokens": 256, "WIDTH": width}
    flops = 2 * 256 * width * tile[1]
    config = Config({"BLOCK_M": tile[0], "BLOCK_N": tile[1]}, warps)
    return Launch(name, product_kernel, 256 // tile[0], {**arguments, **overrides}, config, flops, flops)


def planted() -> dict[str, list[Launch]]:
    """Launches by what is wrong with them."""
    x = torch.empty(256, dtype=torch.bfloat16, device="meta")
    padded = product("padded", 64, (64, 64), 4)
    return {
        "good": [product("good", 64, (64, 64), 4), product("class_few", 64, (16, 64), 4)],
        "spilling": [product("spilling", 64, (64, 256), 1)],
        "large": [product("large", 512, (64, 256), 8)],
        "old tensor cores": [product("old", 64, (16, 64), 4)],
        "no tensor cores": [Launch("none", sum_kernel, 1, {"x_ptr": x, "y_ptr": x, "WIDTH": 256}, Config({}), 1, 1)],
        "padded": [Launch(**{**vars(padded), "executed_flops": 2 * padded.flops})],
        "wrong": [Launch("wrong", wrong_kernel, 1, {"x_ptr": x, "WIDTH": 256}, Config({}))],
        "nothing": [],
    }


def identities() -> dict[str, str]:
    """Hashes of launches that differ in what a run is specialised on, and in what it is not."""
    rows = torch.empty(300, 64, dtype=torch.bfloat16, device="meta")
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "another multiple of 16": {"tokens": 272},
        "odd": {"tokens": 257},
        "odd, another": {"tokens": 259},
        "one": {"tokens": 1},
        "stride one": {"stride_x": 1},
        "aligned view": {"x_ptr": rows[1:257]},
        "unaligned view": {"x_ptr": rows.flatten()[1:]},
        "float16": {"x_ptr": rows.half()},
    }
    launches = {name: product("good", 64, (64, 64), 4, **variant) for name, variant in variants.items()}
    launches["in words"] = rewritten("):\n", '):\n    """A product."""  # in words\n')
    launches["other code"] = rewritten("other=0.0", "other=1.0")
    return {name: compiled.identity(launch, 90) for name, launch in launches.items()}


def rewritten(old: str, new: str) -> Launch:
    """The plain product by a kernel whose source says `new` for `old`, on other lines of its file."""
    kernel = triton.jit(product_kernel.fn)
    kernel._unsafe_update_src(product_kernel.src.replace(old, new, 1))
    kernel.starting_line_number += 1
    return dataclasses.replace(product("good", 64, (64, 64), 4), kernel=kernel)


def report(launches: list[Launch], cache: Path, *, as_json: bool) -> tuple[int, str]:
    """The report's exit status and output for a model that makes these launches."""
    kernel_launches.MODELS = {"default": {}}
    kernel_launches.launches = lambda config, dtype, arch, **_: launches
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = kernels_command.run(ARCHITECTURES, ["bfloat16"], as_json=as_json, cache=cache, jobs=2)
    return status, text.getvalue()


def main(cache: Path) -> None:
    """Print reports on every kind of planted kernels, one on results found in the cache, identities, and their code."""
    reports = {}
    for kind, launches in planted().items():
        status, text = report(launches, cache, as_json=True)
        reports[kind] = {"status": status, **json.loads(text), "text": report(launches, cache, as_json=False)[1]}
    for path in cache.iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "registers": 7}))
    cached = json.loads(report(planted()["good"], cache, as_json=True)[1])
    found = {"identities": identities(), "code": compiled._code(mlp_fwd_kernel)}
    sys.stdout.write(json.dumps({"reports": reports, "cached": cached["kernels"], **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
