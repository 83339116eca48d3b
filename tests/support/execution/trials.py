"""Passes whose kernels are compiled, executed on a CPU and compared with plain PyTorch; run as a program.

Compiling needs a process in which Triton does not interpret. Each argument is the name of a trial; or, behind slashes,
also that of a kernel to plant faults in, and in how many places. For each one JSON object is printed, on its own line.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from support.execution.faults import FaultError
from support.execution.launches import Change, executed, unchanged
from support.judging import FIRST_SEED, by_norm, by_rule
from support.kernels.pass_cases import Case, draw, step
from support.tolerance import share_of_allowed
from torch import Tensor

from septr_fast.algebra.folded import Direct, LowRank, Merged

SIZES: dict[str, Any] = {"shape": (1, 1, 70), "heads": 2, "dim_head": 64, "dim": 64, "mlp_dim": 64}
"""One sequence of 71 tokens: two tiles, the second one ragged."""


@dataclass(frozen=True)
class Trial:
    """A pass on an architecture.

    Attributes:
        arch: compute capability.
        draw: what `support.kernels.pass_cases.draw` takes.
        backward: whether gradients are taken.
        precision: of float32 products, as `torch.set_float32_matmul_precision` takes it.
    """

    arch: int
    draw: dict[str, Any] = field(hash=False)
    backward: bool = True
    precision: str = "highest"


def _drawn(kind: type, dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    return {"kind": kind, "axis": "width", "residual": dtype, **SIZES, **changes}


SHORT = {
    "merged, bfloat16, sm_80": Trial(80, _drawn(Merged, torch.bfloat16)),
    "direct, float16, sm_90": Trial(90, _drawn(Direct, torch.float16)),
    "low-rank forward, bfloat16, sm_86": Trial(
        86, _drawn(LowRank, torch.bfloat16, shape=(1, 2, 21), channels=2), backward=False
    ),
}
"""What `make test` executes."""
TRIALS = {
    **SHORT,
    **{
        f"{form}, {name}, sm_{arch}": Trial(arch, _drawn(kind, dtype, **sizes))
        for form, kind, sizes in (
            ("merged", Merged, {}),
            ("direct", Direct, {}),
            ("low-rank", LowRank, {"shape": (1, 1, 21), "channels": 2}),
        )
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32))
        for arch in (80, 86, 89, 90)
    },
    **{
        f"{form}, TF32, sm_{arch}": Trial(arch, _drawn(kind, torch.float32), precision="high")
        for form, kind in (("merged", Merged), ("direct", Direct))
        for arch in (80, 86, 89, 90)
    },
    **{
        f"merged, autocast, sm_{arch}": Trial(
            arch, _drawn(Merged, torch.float32, compute=torch.bfloat16, axis="height")
        )
        for arch in (80, 90)
    },
    "class-only, bfloat16, sm_90": Trial(90, _drawn(Direct, torch.bfloat16, class_only=True, shape=(2, 3, 37))),
}
"""All of them; the forms of attention that a table prefers are those that run."""

PLANTED: dict[str, tuple[str, str]] = {
    "a barrier dropped": (r"\n\s*bar\.sync[^\n]*", ""),
    "a fence of copies to tensor cores dropped": (r"\n\s*fence\.proxy[^\n]*", ""),
    "a fence of registers dropped": (r"\n\s*wgmma\.fence[^\n]*", ""),
    "a group not committed": (r"\n\s*wgmma\.commit_group[^\n]*", ""),
    "a group not waited for": (r"\n\s*wgmma\.wait_group[^\n]*", ""),
    "a matrix read across": (r"(\n\s*wgmma\.mma_async[^;]*, )0;", r"\g<1>1;"),
    "a product not added": (r"(\n\s*wgmma\.mma_async[^;]*, )%p\d+(, 1, 1)", r"\g<1>0\g<2>"),
    "an operand for another": (r"(\n\s*mma\.sync[^;]*\{[^}]*\}, \{)([^,}]*), ([^,}]*)", r"\g<1>\g<3>, \g<2>"),
    "a matrix not transposed": (r"(\n\s*ldmatrix\.sync\.aligned\.m8n8\.x\d)\.trans", r"\g<1>"),
    "shared memory 16 bytes on": (r"(\n\s*st(?:matrix)?\.[^\[]*\[%r\d+)\]", r"\g<1>+16]"),
    "global memory 16 bytes on": (r"(\n\s*(?:@\S+\s+)?ld\.global[^\[]*\[ ?%rd\d+ ?\+ ?)0", r"\g<1>16"),
    "a mask turned": (r"(\n\s*)@(%p\d+)( (?:ld|st)\.global)", r"\g<1>@!\g<2>\g<3>"),
    "its own lane": (r"(\n\s*shfl\.sync\.bfly\.b32\s[^,]*,[^,]*, )(\d+)", r"\g<1>0"),
    "a comparison turned": (r"(\n\s*setp\.)lt\.s32", r"\g<1>ge.s32"),
    "a sum turned": (r"(\n\s*)add(\.\w+\.?\w*f32|\.f32)", r"\g<1>sub\g<2>"),
    "an exponential dropped": (r"(\n\s*)ex2\.approx[\w.]*\s", r"\g<1>mov.b32 "),
}
"""Faults by what is wrong: what stands in the PTX, and what is put in its place."""


def places(ptx: str, fault: str) -> int:
    """In how many places `fault` can be planted."""
    return len(re.findall(PLANTED[fault][0], ptx))


def plant(ptx: str, fault: str, place: int) -> str:
    """`ptx` with a fault in one of its places."""
    pattern, replacement = PLANTED[fault]
    found = list(re.finditer(pattern, ptx))[place]
    return ptx[: found.start()] + found.expand(replacement) + ptx[found.end() :]


def run(trial: Trial, change: Change = unchanged) -> dict[str, Any]:
    """What comes of a trial: a fault or none, how many times the error that is allowed, what was executed."""
    torch.set_float32_matmul_precision(trial.precision)
    torch.manual_seed(FIRST_SEED)
    case: Case = draw(device=torch.device("cpu"), **trial.draw)
    gradients = case.output_gradients()

    def results(case: Case, backend: str) -> dict[str, Tensor]:
        return step(case, backend, gradients) if trial.backward else case.run(backend)

    fault: FaultError | None = None
    found: dict[str, Tensor] = {}
    with executed(trial.arch, change) as execution, torch.set_grad_enabled(trial.backward):
        try:
            found = results(case, "triton")
        except FaultError as error:
            fault = error
        plain = results(_as_exact(case, trial), "torch")
    oracle = results(case.changed(Tensor.double, torch.float64), "torch")
    shares = {name: _share(result, plain[name].to(result.dtype), oracle[name]) for name, result in found.items()}
    return {
        "fault": None if fault is None else str(fault),
        "share": max(shares.values(), default=0.0),
        "worst": max(shares, key=lambda name: shares[name], default=""),
        "programs": dict(execution.programs),
        "instructions": {name: dict(counts) for name, counts in execution.instructions.items()},
    }


def _as_exact(case: Case, trial: Trial) -> Case:
    """What a CPU can compute as exactly as is asked for: for TF32, which it has not, float16 of as many bits."""
    return case.changed(Tensor.half, torch.float16) if trial.precision == "high" else case


def _share(result: Tensor, plain: Tensor, oracle: Tensor) -> float:
    """How many times what is allowed the norm of the error is, or the largest error; see `support.judging`."""
    compared = (result, plain, oracle)
    found = (*by_norm(*compared).values(), by_rule(*compared)["largest"])
    return max(share_of_allowed(error, limit) for error, limit in found)


def planted(trial: Trial, kernels: str, most: int) -> dict[str, list[str]]:
    """How each fault of a trial's kernels whose name begins with `kernels` is found, in up to `most` of its places.

    Returns:
        For each fault a fault of the machine, "wrong" or "not found", place by place.
    """
    trial = replace(trial, backward="bwd" in kernels)
    sources: dict[str, str] = {}

    def note(name: str, ptx: str) -> str:
        sources.setdefault(name, ptx)
        return ptx

    run(trial, note)
    found: dict[str, list[str]] = {}
    for name in (name for name in sources if name.startswith(kernels)):
        for fault in PLANTED:
            count = places(sources[name], fault)
            for place in sorted({index * count // most for index in range(most)}) if count else ():
                found.setdefault(f"{fault} in {name}", []).append(_outcome(trial, sources[name], fault, place))
    return found


def _outcome(trial: Trial, source: str, fault: str, place: int) -> str:
    def change(name: str, ptx: str) -> str:
        return plant(ptx, fault, place) if ptx == source else ptx

    result = run(trial, change)
    return result["fault"] or ("wrong" if result["share"] > 1 else "not found")


def main(names: list[str]) -> None:
    """Run trials by name, or with faults planted in a kernel."""
    torch.set_num_threads(1)
    for name in names:
        trial, *faults = name.split("/")
        found = planted(TRIALS[trial], faults[0], int(faults[1])) if faults else run(TRIALS[trial])
        sys.stdout.write(json.dumps({"name": name, "found": found}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
