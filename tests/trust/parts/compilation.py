"""Compilation: every kernel for every architecture, within its limits, and as exact in its code as was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trust.machine import judgements as store
from trust.outcome import Outcome, Progress

NAME = "compilation"
WHAT = (
    "Every configuration of every kernel as shipped, for sm_80, 86, 89, 90, 100 and 120 in bfloat16, float16 and "
    "float32, and all that the default model's arguments make of them, compiled once for its content, some for "
    "misaligned tensors and for strides of 64 bits: registers, shared and tensor memory, "
    "tensor cores; contraction as told at every launch; precision and contraction as they are in the code of every "
    "product and of all arithmetic in it."
)
CANNOT = (
    "Whether the compiler's code is right and how it runs: nothing of it was executed. What the default model's "
    "arguments make of float16's kernels, which differ from bfloat16's by the dtype, and of sm_89's, which take the "
    "tables of sm_86: of these each configuration is compiled once."
)

ROOT = Path(__file__).resolve().parents[3]
COUNTED = ("products", "tensor cores", "multiply-adds", "additions and multiplications")
"""Of what `machine_code.summary` counts: told by kernel; the rest by instruction."""


def run(full: bool, progress: Progress) -> Outcome:
    """Compile in a process of its own, with an empty cache, and add up what it tells."""
    kernels: list[dict[str, Any]] = []
    wrong: list[str] = []
    recorded = {"launches": 0, "rows": 0}
    for told in judgements(["full" if full else "short"]):
        wrong += told["wrong"]
        if "launches" in told:
            recorded = told
        else:
            kernels.append(told)
            progress(1)
    if full:
        store.write(kernels)
    return Outcome(len(kernels), wrong, figures(kernels, recorded))


def judgements(arguments: Sequence[str], module: str = "trust.machine.compiling") -> Iterator[dict[str, Any]]:
    """What a program that compiles prints, one object a line, as it comes; an end before its time is wrong."""
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+") as errors:
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": cache,
            "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
        }
        command = [sys.executable, "-m", module, *arguments]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)
        if process.returncode != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            yield {
                "launches": 0,
                "rows": 0,
                "wrong": [f"{module} ended with status {process.returncode}: {last[:300]}"],
            }


def figures(kernels: Sequence[dict[str, Any]], recorded: dict[str, Any]) -> dict[str, Any]:
    """For the page: numbers, and tables by case, kernel and instruction."""
    sound = [kernel for kernel in kernels if "code" in kernel]
    approximate: Counter[str] = Counter()
    for kernel in sound:
        approximate.update({name: count for name, count in kernel["code"].items() if name not in COUNTED})
    both = [kernel["contracted"] for kernel in kernels if "contracted" in kernel]
    return {
        "launches whose contraction was checked": recorded["launches"],
        "rows of the launch tables that were used, each architecture for itself": recorded["rows"],
        "distinct kernels compiled": len(kernels),
        "of these in this run, the others having been judged before": sum(kernel["again"] for kernel in kernels),
        "cases of model, dtype and architecture": len(_cases(kernels)),
        "products in their code": sum(kernel["code"]["products"] for kernel in sound),
        "most registers of a thread": max((kernel["registers"] for kernel in sound), default=0),
        "instructions that spill registers": sum(kernel["spills"] for kernel in sound),
        "instructions that use registers of running products": sum(kernel["touched"] for kernel in sound),
        "stores to shared memory beside running products": sum(kernel["stores_beside"] for kernel in sound),
        "most bytes of shared memory": max((kernel["shared_memory"] for kernel in sound), default=0),
        "most columns of tensor memory": max((kernel["tensor_memory"] for kernel in sound), default=0),
        "compiled with contraction and without": len(both),
        "multiply-adds in these, with and without": ", ".join(f"{yes} and {no}" for yes, no in both),
        "of these for misaligned tensors, and for strides of 64 bits": _varied(kernels),
        "kernels by dtype and architecture": _table(kernels),
        "in the assembly code, by kernel": list(_by_kernel(sound)),
        "inexact instructions in the assembly code": dict(sorted(approximate.items())),
    }


def _cases(kernels: Iterable[dict[str, Any]]) -> set[tuple[str, str, int]]:
    return {(kernel["model"], kernel["dtype"], kernel["arch"]) for kernel in kernels}


def _varied(kernels: Sequence[dict[str, Any]]) -> str:
    counted = [sum(kernel["model"].endswith(form) for kernel in kernels) for form in ("misaligned", "far apart")]
    return " and ".join(map(str, counted))


def _table(kernels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    counted = Counter((kernel["dtype"], kernel["arch"]) for kernel in kernels)
    archs = sorted({arch for _, arch in counted})
    dtypes = sorted({dtype for dtype, _ in counted})
    return [{"dtype": dtype, **{f"sm_{arch}": counted[dtype, arch] for arch in archs}} for dtype in dtypes]


def _by_kernel(kernels: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for name in sorted({kernel["kernel"] for kernel in kernels}):
        own = [kernel for kernel in kernels if kernel["kernel"] == name]
        sums = {what: sum(kernel["code"][what] for kernel in own) for what in COUNTED}
        yield {"kernel": name, "compiled": len(own), **sums}
