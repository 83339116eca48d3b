"""Faults for compiled kernels: what each does to their PTX, and whether execution finds it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from support.execution.trials import Trial, run
from torch import Tensor

FAULTS: dict[str, tuple[str, str]] = {
    "a barrier dropped": (r"\n\s*bar\.sync[^\n]*", ""),
    "a fence of copies to tensor cores dropped": (r"\n\s*fence\.proxy[^\n]*", ""),
    "a fence of registers dropped": (r"\n\s*wgmma\.fence[^\n]*", ""),
    "a group of products not committed": (r"\n\s*wgmma\.commit_group[^\n]*", ""),
    "a group of products not waited for": (r"\n\s*wgmma\.wait_group[^\n]*", ""),
    "a group of copies not committed": (r"\n\s*cp\.async\.commit_group[^\n]*", ""),
    "a group of copies not waited for": (r"\n\s*cp\.async\.wait_group[^\n]*", ""),
    "a matrix read across": (r"(\n\s*wgmma\.mma_async[^;]*, )0;", r"\g<1>1;"),
    "a product not added": (r"(\n\s*wgmma\.mma_async[^;]*, )%p\d+(, 1, 1)", r"\g<1>0\g<2>"),
    "an operand's registers in another order": (
        r"(\n\s*mma\.sync[^;{]*\{[^}]*\}, \{)([^,}]*), ([^,}]*)",
        r"\g<1>\g<3>, \g<2>",
    ),
    "a matrix not transposed": (r"(\n\s*ldmatrix\.sync\.aligned\.m8n8\.x\d)\.trans", r"\g<1>"),
    "another swizzle": (r"(\n\s*xor\.b32\s+%r\d+, %r\d+, )(\d+)", r"\g<1>0"),
    "shared memory 16 bytes on": (r"(\n\s*st(?:matrix)?\.[^\[]*\[%r\d+)\]", r"\g<1>+16]"),
    "global memory 16 bytes on": (r"(\n\s*(?:@\S+\s+)?ld\.global[^\[]*\[ ?%rd\d+ ?\+ ?)0", r"\g<1>16"),
    "a mask turned": (r"(\n\s*)@(%p\d+)( (?:ld|st)\.global)", r"\g<1>@!\g<2>\g<3>"),
    "its own lane": (r"(\n\s*shfl\.sync\.bfly\.b32\s[^,]*,[^,]*, )(\d+)", r"\g<1>0"),
    "a comparison turned": (r"(\n\s*setp\.)lt\.s32", r"\g<1>ge.s32"),
    "a sum turned": (r"(\n\s*)add(\.\w+\.?\w*f32|\.f32)", r"\g<1>sub\g<2>"),
    "an exponential dropped": (r"(\n\s*)ex2\.approx[\w.]*\s", r"\g<1>mov.b32 "),
}
"""By what is wrong: what stands in the PTX, and what is put in its place."""


def places(ptx: str, fault: str) -> int:
    """In how many places `fault` can be planted."""
    return len(re.findall(FAULTS[fault][0], ptx))


def plant(ptx: str, fault: str, place: int) -> str:
    """`ptx` with a fault in one of its places."""
    pattern, replacement = FAULTS[fault]
    found = list(re.finditer(pattern, ptx))[place]
    return ptx[: found.start()] + found.expand(replacement) + ptx[found.end() :]


def planted(trial: Trial, kernels: str, most: int) -> Iterator[dict[str, Any]]:
    """How each fault of a trial's kernels whose name begins with `kernels` is found, in up to `most` of its places.

    Gradients are taken where the kernels make them, or something for them.

    Returns:
        One by one the kernel, the fault, its place, of how many, and how it is found: a fault of the machine, "wrong",
        or "not found"; where not, whether any bit of the results is another.
    """
    trial = replace(trial, backward=trial.backward and ("bwd" in kernels or "attention" in kernels))
    sources: dict[str, str] = {}

    def note(name: str, ptx: str) -> str:
        sources.setdefault(name, ptx)
        return ptx

    sound: dict[str, Any] = {}
    run(trial, note, sound)
    for name in (name for name in sources if name.startswith(kernels)):
        for fault in FAULTS:
            count = places(sources[name], fault)
            for place in sorted({(2 * index + 1) * count // (2 * most) for index in range(most)}) if count else ():
                found, same = _outcome(trial, sources[name], fault, place, sound["found"])
                yield {"kernel": name, "fault": fault, "place": place, "of": count, "found": found, "same": same}


def _outcome(trial: Trial, source: str, fault: str, place: int, sound: dict[str, Tensor]) -> tuple[str, bool]:
    def change(name: str, ptx: str) -> str:
        return plant(ptx, fault, place) if ptx == source else ptx

    kept: dict[str, Any] = {}
    result = run(trial, change, kept)
    same = all(torch.equal(x, sound[name]) for name, x in kept["found"].items()) and not result["fault"]
    return result["fault"] or ("wrong" if not result["share"] <= 1 else "not found"), same
