"""Every launch configuration of the tables alone: it serves its kernel, and small tiles serve all the others.

So a configuration that is wrong on this device is named, also one that the default model does not reach.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Choice, Config, Launch
from septr_fast.kernels.tables import TABLES
from torch import Tensor

from benchmarks.gpu.processes import is_lost
from benchmarks.measuring.timing import Budget
from benchmarks.suite.shapes import FEW_TOKENS
from septr_fast.tuning.ahead import compile_ahead, sentence
from septr_fast.tuning.tuner import FUSED, dry_run
from septr_fast.tuning.workloads import Workload, workloads

SIZE = (65, 137)
"""Odd; along the width more than the largest tile, along the height no more than what fused attention takes."""

BATCH = 2
MANY_HEADS = 20
"""More than one tile of heads holds, for class-only passes."""

MANY_CHANNELS = 5
SMALL_TILE = 16
RESERVE = 20.0
"""Seconds that a pass may take with all its configurations, most of it to compile them."""

TINY_KERNELS = frozenset({"class_attention_fwd"})

Configs = Mapping[str, Config]
Results = dict[str, Tensor]


def configurations(device: torch.device, tiny: bool, budget: Budget) -> Iterator[dict[str, Any]]:
    """Run every configuration that serves `device` in each formulation that uses it, and judge what comes out.

    Results and gradients must have the same bits twice, and be as good as plain PyTorch's by the rule of the tests.

    Yields:
        For every configuration its `kernel`, `itemsize`, `width`, `tiles`, `warps` and `stages`, the `passes` that it
        ran in, and what was `wrong`; both are added to when a later pass takes it too.
    """
    arch, jobs = launch.architecture(device), (os.cpu_count() or 1) if device.type == "cuda" else 0
    others = small_tiles(arch)
    seen: set[str] = set()
    found: dict[str, dict[str, Any]] = {}
    with launch.untuned():
        for workload in _drawn(device, tiny):
            new = {}
            for choice, config in shipped(workload, arch):
                key = f"{choice.name} {choice.itemsize} {config}"
                if f"{key} {workload.formulation}" not in seen and not (tiny and choice.name not in TINY_KERNELS):
                    seen.add(f"{key} {workload.formulation}")
                    new[key] = (choice, config)
            if not new or not budget.allows(f"configurations: {workload.name}", RESERVE if jobs else 0.0):
                continue
            if jobs:
                compile_ahead(_launches(workload, arch, new.values(), others), device, jobs)
            trial = Trial(workload)
            for key, (choice, config) in new.items():
                is_new = key not in found
                entry = found.setdefault(key, {**_described(choice, config), "passes": [], "wrong": []})
                entry["passes"].append(workload.name)
                fault = trial.fault_alone(choice.name, config, others)
                if fault is not None:
                    entry["wrong"].append(f"{workload.name}: {fault}")
                if is_new:
                    yield entry
                if fault is not None and is_lost(device):
                    budget.left_out.append(f"configurations after {key}: the device is lost")
                    return


class Trial:
    """A pass to run with various configurations."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._judging: Any = importlib.import_module("support.judging")
        self._expected = functools.cache(self._draw)

    def fault_alone(self, kernel: str, config: Config, others: Configs) -> str | None:
        """What is wrong with `config` for `kernel` where `others` serve the other kernels, or None."""
        fault = self._fault(alone(kernel, config, others))
        if fault is None or self._fault(others) is None:
            return fault
        return f"{fault}, and so it is with small tiles for all kernels"

    def _fault(self, configs: Configs) -> str | None:
        def draw(seed: int) -> tuple[Results, Results, Results]:
            workload, plain, exact = self._expected(seed)
            with launch.override(configs):
                first, second = workload.run(), workload.run()
            for name, value in first.items():
                if not torch.equal(value, second[name]):
                    raise ArithmeticError(f"{name} differs from run to run")
            return first, plain, exact

        try:
            self._judging.judge(draw, 1)
        except Exception as error:
            return sentence(error)
        return None

    def _draw(self, seed: int) -> tuple[Workload, Results, Results]:
        torch.manual_seed(seed)
        workload = self.workload.redrawn()
        return workload, workload.run("torch"), workload.exact()


def models(size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    """Constructor arguments of models whose passes together use every configuration of the tables."""
    found = [
        {"input_size": size, "heads": 3, "dim_head": width, "dim": width, "mlp_dim": width - 24}
        for width in (256, 128, 64)
    ]
    many_heads = {**found[0], "heads": MANY_HEADS, "dim_head": 16}
    return [*found, many_heads, {**found[-1], "channels": MANY_CHANNELS}]


def shipped(workload: Workload, arch: int) -> list[tuple[Choice, Config]]:
    """What a pass uses of the tables for `arch`, in either form of its attention."""
    choices, _ = dry_run(workload, arch)
    return [(choice, launch.lookup(choice.name, arch, choice.itemsize, choice.width)) for choice in choices]


def small_tiles(arch: int) -> dict[str, Config]:
    """A configuration for every kernel that is plain: small tiles, no pipelines, the attention not fused."""
    found = {}
    for row in TABLES:
        if arch in row.archs:
            tiles = {
                name: min(size, SMALL_TILE) if name.startswith("BLOCK_") else size for name, size in row.tiles.items()
            }
            found[row.kernel] = Config(tiles)
    return {**found, "attention_form": Config({"FUSED": 0}, 1, 1)}


def alone(kernel: str, config: Config, others: Configs) -> Configs:
    """`config` for `kernel`, which runs, and `others` for the others."""
    return {**others, **(FUSED if kernel == "fused_attention_fwd" else {}), kernel: config}


def _drawn(device: torch.device, tiny: bool) -> Iterator[Workload]:
    for dtype in (torch.float32,) if tiny else (torch.bfloat16, torch.float32):
        for config in [FEW_TOKENS] if tiny else models():
            yield from workloads(config, [dtype], BATCH, device)


def _launches(workload: Workload, arch: int, new: Any, others: Configs) -> list[Launch]:
    """What has to be compiled to try the `new` configurations, each once."""
    with launch.record(arch) as found, launch.override(others):
        workload.run()
    kept = list(found)
    for choice, config in new:
        with launch.record(arch) as found, launch.override(alone(choice.name, config, others)):
            workload.run()
        kept += [launched for launched in found if launched.name == choice.name.removesuffix("_direct")]
    return kept


def _described(choice: Choice, config: Config) -> dict[str, Any]:
    return {
        "kernel": choice.name,
        "itemsize": choice.itemsize,
        "width": choice.width,
        **asdict(config),
    }
