"""Memory of a call and the largest batch, as the benchmarks measure them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.runs.benchmark_runs import CLASSES, CPU, FORWARD, STEP, Timer, runner
from torch import nn

from benchmarks.measuring import memory
from benchmarks.suite import cases, models
from benchmarks.suite.cases import OURS, RECOMPUTING, REFERENCE, Case
from benchmarks.suite.data import Source


def test_memory_of_a_call() -> None:
    def call() -> torch.Tensor:
        kept = torch.empty(1000)
        torch.empty(3000)
        torch.empty(2000)
        return kept

    found = memory.memory(call, CPU)
    assert found == memory.Memory(peak=4 * 4000, kept=4 * 1000)
    assert memory.memory(lambda: None, CPU) == memory.Memory(0, 0)


@pytest.mark.parametrize("name", [OURS, RECOMPUTING, REFERENCE, cases.VIT_TINY])
def test_memory_of_a_step_is_the_same_whatever_ran_before(name: str) -> None:
    case = replace(STEP, config={**STEP.config, "input_size": (16, 32)})
    inputs = next(Source(None, CPU).batches(case, torch.float32))
    found = []
    for _ in range(3):
        model = models.build(name, case, CLASSES, CPU)
        task = models.task(model, case, CPU)
        task(*inputs)
        found.append(memory.memory(lambda task=task: task(*inputs), CPU))
        models.task(models.build(REFERENCE, FORWARD, CLASSES, CPU), FORWARD, CPU)(torch.randn(3, 1, *FORWARD.size))
    gradients = sum(4 * parameter.numel() for parameter in model.parameters())
    assert found[0].peak == found[1].peak == found[2].peak
    assert found[0].peak > gradients


def test_a_batch_beyond_the_device_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    build, largest = models.task, 5

    def small(model: nn.Module, case: Case, *arguments: Any) -> Any:
        if case.batch > largest:
            raise torch.OutOfMemoryError("too much")
        return build(model, case, *arguments)

    monkeypatch.setattr(models, "task", small)
    found = runner(limit=64 << 20)
    found.run(Timer(), replace(STEP, group=cases.LARGEST), REFERENCE)
    assert [result.batch for result in found.results] == [largest]


FREED = """
import resource, torch
from benchmarks.measuring.memory import give_back
from septr_fast.passes.torch import freed_memory

def faults(call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def blocks():
    return [torch.zeros(1 << 20, dtype=torch.uint8) for _ in range(200)]

freed_memory.keep_for_training()
for call in (blocks, blocks, give_back, blocks):
    print(faults(call))
"""
"""Page faults of taking 200 MiB, of taking them again, of handing them back and of taking them once more."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_case_finds_no_memory_that_another_left() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", FREED], env=environment, check=True, capture_output=True, text=True)
    first, again, _, afterwards = map(int, run.stdout.split())
    assert again < 0.1 * first
    assert afterwards > 0.9 * first


@pytest.mark.parametrize(
    ("peak", "limit", "batch"),
    [
        (lambda batch: 10 + 7 * batch, 100, 12),
        (lambda batch: 10 + 7 * batch, 94, 12),
        (lambda batch: 10 + 7 * batch, 93, 11),
        (lambda batch: 10 + 7 * batch, 17, 1),
        (lambda batch: 10 + 7 * batch, 16, 0),
        (lambda batch: 100 * batch + batch**2, 1000, 9),
        (lambda batch: max(50, 5 * batch), 100, 20),
        (lambda batch: 7 * batch if batch < 21 else None, 1000, 20),
        (lambda batch: 7 * batch if batch < 21 else None, 100, 14),
        (lambda batch: None, 100, 0),
    ],
    ids=[
        *("between", "exact", "one less", "one", "none", "faster growth", "level at first"),
        *("a small device", "a device small for the next", "a device too small"),
    ],
)
def test_largest_batch(peak: Any, limit: int, batch: int) -> None:
    assert memory.largest_batch(peak, limit) == batch
