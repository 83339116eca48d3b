"""Execution: the instructions that the compiler made, run on a CPU, faults planted in them among others."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from septr_fast.kernels import launch
from support.execution import trials
from support.execution.launches import build
from torch import Tensor

from trust.machine import compiling
from trust.outcome import Outcome, Progress
from trust.parts.compilation import judgements

NAME = "execution"
WHAT = (
    "Passes and whole models forward and backward on kernels as compiled for sm_80, 86, 89 and 90, in bfloat16, "
    "float16 and float32, each configuration that models launch: their PTX executed thread by thread on a CPU, "
    "beside plain PyTorch, float64 and Triton's interpreter; accesses outside of tensors and of shared memory, races "
    "between warps, copies, fences and products that are not waited for. Faults planted in that PTX."
)
CANNOT = (
    "What the assembler makes of it, and kernels for sm_100 and later, whose tensor memory is not executed. One order "
    "of warps and copies is run; others are judged by what barriers and waits promise."
)

PLANTED = (
    "direct, float16, sm_90/mlp_fwd/2",
    "direct, float16, sm_90/axis_attention_fwd/2",
    "merged, bfloat16, sm_90/axis_attention_bwd_key/1",
    "merged, bfloat16, sm_80/axis_attention_fwd/2",
    "merged, bfloat16, sm_80/mlp_fwd/2",
    "low-rank, float32, sm_86/low_rank_fwd/2",
)
"""Trials, kernels in them, and in how many places of each."""
SHORT_PLANTED = ("direct, float16, sm_90/mlp_fwd/1",)
SURVIVORS = {
    ("mlp_fwd", "an exponential dropped"): "what GELU computes for large values is not chosen for small ones",
    ("mlp_fwd", "a sum turned"): "the same",
    ("axis_attention_bwd_key", "a group of products not committed"): "the next group commits it before it is used",
    ("axis_attention_bwd_key", "a group of products not waited for"): "the next wait comes before it is used",
}
"""Faults that change nothing, by kernel, and why."""
LEAST_FOUND = 0.95
UNITS = {
    "tensor cores": ("mma", "wgmma"),
    "special functions": ("ex2", "lg2", "rsqrt", "rcp", "sqrt", "div", "sin", "cos", "tanh"),
    "global memory": ("ld.global", "st.global", "cp.async"),
    "shared memory": ("ld.shared", "st.shared", "ldmatrix", "stmatrix", "shfl"),
    "control": ("bar", "bra", "ret", "fence", "setp"),
    "data": ("mov", "cvt", "ld.param", "selp", "prmt"),
}
"""Instructions by what executes them; all others are arithmetic."""


def run(full: bool, progress: Progress) -> Outcome:
    """Execute trials, compare each with the interpreter, and plant."""
    names = list(trials.TRIALS) if full else list(trials.SHORT)
    told: dict[str, dict[str, Any]] = {}
    planted: list[dict[str, Any]] = []
    wrong: list[str] = []
    farthest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"@{folder}", *names, *(PLANTED if full else SHORT_PLANTED)]
        interpreted: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        for one in judgements(arguments, module="support.execution.trials"):
            if "launches" in one:
                wrong += one["wrong"]
            elif "fault" in one and "kernel" in one:
                planted.append(one)
            else:
                told[one["name"]] = one
                wrong += judged(one)
                if "share" in one and one["fault"] is None:
                    distance, where = _from_interpreter(one, Path(folder), interpreted)
                    wrong += [] if distance <= 1 else [f"{one['name']}: {distance:.2f} from the interpreter, {where}"]
                    farthest = max(farthest, distance)
            progress(1)
    wrong += [f"{name}: was not executed" for name in names if name not in told]
    wrong += missed(planted)
    missing = _not_executed(told) if full else []
    wrong += missing
    return Outcome(len(told) + len(planted), wrong, figures(told, planted, farthest, len(missing)))


def judged(told: dict[str, Any]) -> list[str]:
    """What is wrong with a trial."""
    if "as" in told:
        return []
    if told["fault"] is not None:
        return [f"{told['name']}: {told['fault']}"]
    if not 0 < told["share"] <= 1:
        return [f"{told['name']}: {told['share']:.2f} times the error that is allowed, in {told['worst']}"]
    return []


def missed(planted: Sequence[dict[str, Any]]) -> list[str]:
    """Planted faults that were not found without a reason, or too many that were not."""
    survivors = [one for one in planted if one["found"] == "not found"]
    lines = [
        f"{one['kernel']}, place {one['place']} of {one['of']}: {one['fault']}, and it was not found"
        for one in survivors
        if not _why(one)
    ]
    if len(survivors) > max(1, (1 - LEAST_FOUND) * len(planted)):
        lines.append(f"{len(survivors)} of {len(planted)} planted faults were not found")
    return lines if planted else ["no fault was planted"]


def _from_interpreter(
    told: dict[str, Any], folder: Path, interpreted: dict[tuple[Any, ...], dict[str, Tensor]]
) -> tuple[float, str]:
    """How far, over what is allowed, executed results are from those of Triton's interpreter, and which is farthest.

    The interpreter knows no architecture but by its configurations: what is `interpreted` serves all that have them.
    """
    name = told["name"]
    trial: Any = trials.TRIALS[name]
    kept = torch.load(folder / f"{name}.pt", weights_only=True)
    key = (repr(replace(trial, arch=0)), *told["builds"])
    if key not in interpreted:
        with mock.patch.object(launch, "architecture", return_value=trial.arch):
            interpreted[key] = {name: x.double() for name, x in trial.results(trial.case(), "triton").items()}
    os.remove(folder / f"{name}.pt")
    return trial.largest(kept["found"], kept["plain"], interpreted[key])


def _not_executed(told: dict[str, dict[str, Any]]) -> list[str]:
    """Builds of models that no trial executed, in words."""
    executed = set(_builds(told))
    shipped = {
        (build(one), case.dtype, case.arch)
        for case, launches in compiling.recorded(full=True, architectures=trials.ARCHITECTURES, varied=False)
        for one in launches
    }
    return [f"{name}, {dtype}, sm_{arch}: not executed" for name, dtype, arch in sorted(shipped - executed)]


def _builds(told: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
    """The builds that were executed, each in the dtype of its trial and on its architecture."""
    for name, one in told.items():
        dtype = next((known for known in trials.DTYPES if f", {known}, " in name), "")
        found = told[one["as"]] if "as" in one else one
        yield from ((known, dtype.lower(), trials.TRIALS[name].arch) for known in found["builds"])


def figures(
    told: dict[str, dict[str, Any]], planted: Sequence[dict[str, Any]], farthest: float, missing: int
) -> dict[str, Any]:
    """For the page."""
    ran = [one for one in told.values() if "share" in one]
    found = [one for one in planted if one["found"] != "not found"]
    return {
        "passes": len(told),
        "of these executed, the others having the instructions of one of them": len(ran),
        "programs": sum(sum(one["programs"].values()) for one in ran),
        "instructions of warps": sum(sum(counts.values()) for one in ran for counts in one["instructions"].values()),
        "configurations, dtypes and architectures executed": len(set(_builds(told))),
        "of those that models launch, not executed": missing,
        "largest error, over what is allowed": max((one["share"] for one in ran), default=0.0),
        "farthest from the interpreter, over what is allowed": farthest,
        "faults planted": len(planted),
        "of these found": len(found),
        "kinds of planted faults": len({one["fault"] for one in planted}),
        "planted faults": [
            {"kernel": one["kernel"], "fault": one["fault"], "place": one["place"], "found": _reason(one)}
            for one in planted
        ],
        "kernels": list(_by_kernel(ran)),
    }


def _reason(one: dict[str, Any]) -> str:
    if one["found"] != "not found":
        return str(one["found"].partition(": ")[2] or one["found"])
    return f"not found: {_why(one) or 'unexplained'}"


def _why(survivor: dict[str, Any]) -> str | None:
    """Why a planted fault cannot be found."""
    known = SURVIVORS.get((survivor["kernel"].removesuffix("_wide"), survivor["fault"]))
    return known or ("no bit of any result depends on it here" if survivor["same"] else None)


def _by_kernel(ran: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Per program of a kernel: instructions of its warps by unit, passes over the banks, and sectors."""
    for one in ran:
        for kernel, counts in sorted(one["instructions"].items()):
            programs, traffic = one["programs"][kernel], one["traffic"][kernel]
            units = Counter({unit: sum(counts.get(name, 0) for name in names) for unit, names in UNITS.items()})
            units["arithmetic"] = sum(counts.values()) - units.total()
            conflicts = traffic["shared_passes"] - traffic["least_shared_passes"]
            yield {
                "pass": one["name"],
                "kernel": kernel,
                "programs": programs,
                **{unit: round(units[unit] / programs) for unit in (*UNITS, "arithmetic")},
                "passes over the banks": round(traffic["shared_passes"] / programs),
                "of these by conflicts": round(conflicts / programs),
                "sectors per request": round(traffic["sectors"] / max(1, traffic["global_requests"]), 2),
                "sectors over the least": round(traffic["sectors"] / max(1, traffic["least_sectors"]), 2),
            }
