"""Compiles recorded launches and judges each: run as a program, prints one JSON object a line.

Compiling needs a process in which Triton does not interpret, and no cache of its own; what `judgements` has kept of
kernels of the same content stands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Launch
from torch import Tensor

from septr_fast.commands.kernels import ARCHITECTURES, DTYPES
from septr_fast.tuning import compiled, kernel_launches
from septr_fast.tuning.kernel_report import DEFAULT, Case, Entry, complaints
from trust.machine import judgements, machine_code, rows

NARROW = kernel_launches.NARROW
WIDE: dict[str, dict[str, Any]] = {
    "head dim 256, direct": {**NARROW, "heads": 2, "dim_head": 256, "formulation": "direct"},
    "8 channels": {**NARROW, "channels": 8, "formulation": ["low-rank", "merged"]},
}
"""Models for the rows of the launch tables that those of the kernel report leave unused."""

SHORT = {
    ("bfloat16", 80): ("normalize_bwd",),
    ("float16", 89): ("axis_attention_fwd",),
    ("float32", 86): ("mlp_fwd",),
    ("bfloat16", 100): ("mlp_fwd", "class_query_fwd"),
}
"""Kernels of the short form, by dtype and architecture."""
SHORT_MODEL = "head dim 64, direct"
VARIED = {80: "float32", 90: "bfloat16", 100: "float16"}
"""The dtype in which kernels are compiled for tensors that lie otherwise than models lay them, by architecture: one for
each way to tensor cores."""
MISALIGNED, FAR = ", misaligned", ", far apart"
BOTH_WAYS = "normalize_bwd"
"""The kernel that is compiled with contraction and without."""
FUSION = "enable_fp_fusion"
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Work:
    """A kernel to compile: the first case that it is of, a launch that it serves, and its `compiled.identity`."""

    case: Case
    launch: Launch
    identity: str


class _Called:
    """Stands in for a kernel and notes what it is called with."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._note

    def warmup(self, *, grid: tuple[int, ...], **given: Any) -> None:
        self._note(**given)

    def _note(self, **given: Any) -> None:
        self.given = given


def recorded(
    full: bool, architectures: Sequence[int] = ARCHITECTURES, varied: bool = True
) -> Iterator[tuple[Case, list[Launch]]]:
    """The launches of every model, dtype and architecture; in short those of one small model in few cases.

    Args:
        full: whether in full.
        architectures: compute capabilities.
        varied: whether with those for tensors that lie otherwise than models lay them.
    """
    models = {**kernel_launches.MODELS, **WIDE}
    cases = [(model, dtype, arch) for dtype in DTYPES for model in models for arch in architectures]
    if not full:
        cases = [(SHORT_MODEL, *key) for key in SHORT]
    for model, name, arch in cases:
        found = kernel_launches.launches(models[model], DTYPES[name], arch, mixed=model in kernel_launches.MIXED)
        yield Case(model, name, arch), found
        if full and varied and VARIED.get(arch) == name and model in kernel_launches.MODELS and model != DEFAULT:
            yield Case(model + MISALIGNED, name, arch), [misaligned(one) for one in found]
            yield Case(model + FAR, name, arch), [far_apart(one) for one in found]


def misaligned(one: Launch) -> Launch:
    """The launch for tensors that begin beside a multiple of 16 bytes, rows of odd lengths apart."""

    def beside(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty(1, dtype=value.dtype, device="meta").as_strided(value.shape, value.stride(), 1)
        return tuple(stride + 1 if stride > 1 else stride for stride in value)

    return _varied(one, beside)


def far_apart(one: Launch) -> Launch:
    """The launch for tensors whose strides take 64 bits."""
    return _varied(one, lambda value: value if isinstance(value, Tensor) else tuple(map(_far, value)))


def _far(stride: int) -> int:
    return stride + (1 << 35) if stride > 1 else stride


def _varied(one: Launch, change: Callable[[Any], Any]) -> Launch:
    arguments = dict(one.arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor) or (name.endswith("_strides") and value is not None):
            arguments[name] = change(value)
    return replace(one, arguments=arguments)


def _variant(case: Case) -> str:
    return next((form for form in (MISALIGNED, FAR) if case.model.endswith(form)), "")


def unsaid(case: Case, one: Launch) -> list[str]:
    """What a launch leaves to Triton's defaults, or says otherwise than is right, when it runs or compiles."""
    wrong = []
    for way in (lambda x: launch.run(x, torch.device("cpu")), launch.compile_only):
        called = _Called()
        way(replace(one, kernel=called))
        if called.given.get(FUSION) is not True:
            wrong.append(f"{FUSION}: expected True, got {called.given.get(FUSION)!r}")
    return [f"{one.name}, {', '.join(map(str, case))}: {problem}" for problem in dict.fromkeys(wrong)]


def choose(cases: Iterable[tuple[Case, list[Launch]]], full: bool, wrong: list[str]) -> tuple[list[Work], int]:
    """What is compiled, and how many launches were seen; adds to `wrong` what they leave unsaid.

    Of the default model everything that compiles to something of its own, where `is_first_of_kind`; of all else what
    has a configuration that was not met in that dtype on that architecture. For tensors that lie otherwise registers
    may be spilled: such kernels are slow, and must be right.
    """
    chosen: dict[tuple[str, str], Work] = {}
    met, number = set(), 0
    for case, launches in cases:
        number += len(launches)
        for one in launches:
            wrong += unsaid(case, one)
            config = one.config
            of_case = (case.dtype, case.arch, _variant(case))
            key = (one.name, tuple(config.tiles.items()), config.warps, config.stages, *of_case)
            new = key not in met
            met.add(key)
            if (new or (case.model == DEFAULT and is_first_of_kind(case))) and (
                full or one.name in SHORT[case.dtype, case.arch]
            ):
                identity = compiled.identity(one, case.arch)
                chosen.setdefault((identity, case.dtype if has_products(one) else ""), Work(case, one, identity))
    return list(chosen.values()), number


def is_first_of_kind(case: Case) -> bool:
    """Whether no other dtype or architecture has its kernels specialised for the same arguments, in the same tiles.

    float16's are those of bfloat16, and sm_89 takes the tables of sm_86: of these each configuration is compiled once.
    """
    return case.dtype != "float16" and case.arch != 89


def has_products(one: Launch) -> bool:
    """Whether a launch may compute products."""
    return one.flops > 0


def judged(works: Sequence[Work], fusion: bool = True) -> list[dict[str, Any]]:
    """Compile kernels for one architecture, without any cache, and tell what is found in each and what is wrong."""
    arch = works[0].case.arch
    with compiled.driver(), mock.patch.object(launch, "_options", _with_fusion(fusion)):
        kernels = [_compiled(work) for work in works]
    found = compiled.inspect(kernels, arch)
    return [_judged(*parts, fusion) for parts in zip(works, kernels, found, strict=True)]


def _compiled(work: Work) -> Any:
    kernel = compiled.attempted(work.launch, work.case.arch)
    work.launch.kernel.device_caches.clear()
    return kernel


def _judged(work: Work, kernel: Any, found: compiled.Compiled | compiled.Failed, fusion: bool) -> dict[str, Any]:
    case, one = work.case, work.launch
    entry = Entry(case, [one], found, work.identity)
    wrong = [line for line in complaints(entry) if not (_variant(case) and "spill registers" in line)]
    told: dict[str, Any] = {"kernel": one.name, **case._asdict(), "identity": work.identity}
    if isinstance(found, compiled.Compiled):
        where = f"{one.name} on sm_{case.arch}, {case.dtype}, {case.model}"
        asked = machine_code.Asked(case.dtype, fusion)
        wrong += [f"{where}: {fault}" for fault in machine_code.faults(kernel.asm, found.tensor_cores, asked)]
        if kernel.metadata.enable_fp_fusion is not fusion:
            wrong.append(f"{where}: enable_fp_fusion is {kernel.metadata.enable_fp_fusion}, expected {fusion}")
        told |= {**asdict(found), "code": machine_code.summary(kernel.asm)}
    return {**told, "wrong": list(dict.fromkeys(wrong))}


def both_ways(work: Work) -> dict[str, Any]:
    """A kernel with contraction and without: its code must be that asked for, and fewer products contracted."""
    [with_fusion], [without] = judged([work]), judged([work], fusion=False)
    wrong = with_fusion["wrong"] + without["wrong"]
    counts = [told["code"]["multiply-adds"] if "code" in told else 0 for told in (with_fusion, without)]
    if counts[0] <= counts[1]:
        where = f"{work.launch.name} on sm_{work.case.arch}"
        wrong.append(f"{where}: {counts[0]} multiply-adds, {counts[1]} where contraction is barred")
    return {**with_fusion, "wrong": wrong, "contracted": counts}


def _with_fusion(fusion: bool) -> Callable[[launch.Config], dict[str, Any]]:
    options = launch._options
    return options if fusion else lambda config: {**options(config), "enable_fp_fusion": False}


def report(full: bool) -> Iterator[dict[str, Any]]:
    """What was recorded, every kernel's judgement as it comes, and those of what is compiled both ways."""
    wrong: list[str] = []
    for path in sorted((ROOT / "kernels").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        wrong += machine_code.unsaid_precision(source, path.name) + machine_code.plain_sums(source, path.name)
    with rows.noted() as used:
        works, number = choose(recorded(full), full, wrong)
    wrong += rows.unused(used) if full else []
    wrong += [] if number else ["no model launched a kernel"]
    yield {"launches": number, "rows": len(used & rows.of_kernels()), "wrong": list(dict.fromkeys(wrong))}
    yield from _judgements(works)


def _judgements(works: Sequence[Work]) -> Iterator[dict[str, Any]]:
    """What is said of each kernel: what is known as it was, then those compiled both ways, then all others."""
    known, twice = judgements.read(), set[int]()
    due: dict[int, list[tuple[Work, str]]] = {}
    for work in works:
        both = work.launch.name == BOTH_WAYS and work.case.arch not in twice
        twice |= {work.case.arch} if both else set()
        key = judgements.key(work.identity, work.case.dtype if has_products(work.launch) else "", both)
        if key in known:
            yield {**known[key], **work.case._asdict(), "again": False}
        elif both:
            yield {**both_ways(work), "key": key, "again": True}
        else:
            due.setdefault(work.case.arch, []).append((work, key))
    for of_arch in due.values():
        for first in range(0, len(of_arch), compiled.TOGETHER):
            chosen, keys = zip(*of_arch[first : first + compiled.TOGETHER], strict=True)
            for told, key in zip(judged(chosen), keys, strict=True):
                yield {**told, "key": key, "again": True}


def main(full: bool) -> None:
    """Print the report."""
    for told in report(full):
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1] == "full")
