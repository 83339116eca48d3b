"""The main job: spoken words as spectrograms through the reference and `SepTr`, inference and training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import measure, parity
from benchmarks.audio import Clips
from benchmarks.cases import BASELINE, Case, build, step
from benchmarks.conftest import Progress


@pytest.fixture(scope="session")
def references(clips: Callable[[Case], Clips]) -> Callable[[Case], tuple[parity.Exact, parity.Errors]]:
    """The exact results of a case and the baseline's own errors, computed once."""
    known: dict[Case, tuple[parity.Exact, parity.Errors]] = {}

    def of(case: Case) -> tuple[parity.Exact, parity.Errors]:
        if case not in known:
            data = clips(case)
            x, labels = next(batches(data, case))
            baseline = build(BASELINE, case, len(data.classes))
            exact = parity.exact(baseline, x, labels, case.task == "training step")
            known[case] = exact, parity.errors(baseline, x, labels, exact)
        return known[case]

    return of


def batches(data: Clips, case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of spectrograms and labels without end, walking through all clips."""
    for start in itertools.count(0, case.batch):
        index = torch.arange(start, start + case.batch) % len(data.labels)
        yield data.spectrograms[index], data.labels[index]


@pytest.mark.benchmark(warmup=False)
def test_septr(
    benchmark: Any,
    case: Case,
    model_name: str,
    clips: Callable[[Case], Clips],
    references: Callable[[Case], tuple[parity.Exact, parity.Errors]],
    details: dict[tuple[str, str], dict[str, Any]],
    progress: Progress,
) -> None:
    data = clips(case)
    model = build(model_name, case, len(data.classes))
    stream = batches(data, case)
    x, labels = next(stream)
    exact, baseline = references(case)
    found = parity.errors(model, x, labels, exact)
    parity.check(found, baseline, exact, f"{case.name}, {model_name}")

    training = case.task == "training step"
    task = step(model, case.task)
    beside = Beside(case, len(data.classes)) if model_name != BASELINE else None
    details[case.name, model_name] = {
        "gflop": measure.flops(lambda: task(x, labels)) / 1e9,
        "saved_mb": measure.held_bytes(model, x) / 1e6 if training else None,
        "error": found.logits,
    }

    def setup() -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        batch = next(stream)
        progress.advance(f"{case.name}: {model_name}")
        if beside is not None:
            beside.call(*batch)
        return batch, {}

    benchmark.group = case.name
    benchmark.extra_info["model"] = model_name
    benchmark.extra_info.update(details[case.name, model_name])
    logits = benchmark.pedantic(task, setup=setup, rounds=case.rounds, warmup_rounds=1)
    assert logits.shape == (case.batch, len(data.classes))
    assert torch.isfinite(logits).all()
    if benchmark.stats is not None and beside is not None:
        details[case.name, model_name]["ratios"] = beside.ratios(benchmark.stats.stats.data)
        benchmark.extra_info["ratios"] = details[case.name, model_name]["ratios"]


class Beside:
    """The baseline, called before every call of another model, so that both see the same machine.

    A machine that is shared or that warms up changes its speed within minutes: two medians taken one after
    the other can differ by a third. The ratio of two calls side by side does not.
    """

    def __init__(self, case: Case, num_classes: int) -> None:
        self.task = step(build(BASELINE, case, num_classes), case.task)
        self.seconds: list[float] = []

    def call(self, x: Tensor, labels: Tensor) -> None:
        """One timed call of the baseline."""
        start = time.perf_counter()
        self.task(x, labels)
        self.seconds.append(time.perf_counter() - start)

    def ratios(self, seconds: list[float]) -> list[float]:
        """The baseline's time over the model's `seconds`, call by call; the calls of the warm-up left out."""
        baseline = self.seconds[len(self.seconds) - len(seconds) :]
        return [plain / ours for plain, ours in zip(baseline, seconds, strict=True)]
