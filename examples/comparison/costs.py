"""What each model costs: arithmetic, time and memory of a clip in inference and in training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measuring.memory import give_back, memory
from benchmarks.measuring.timing import interleaved
from comparison.contestants import Contestant, flops, parameter_groups

ROUNDS, LIMIT = 7, 60.0
"""Times that every call is timed, and after how many seconds no further round begins."""


def measure(
    contestants: Sequence[Contestant], size: tuple[int, int], classes: int, batch: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Costs by the names of the models: calls of all of them in turn, medians over the rounds.

    Args:
        contestants: the models.
        size: mels and frames.
        classes: number of them.
        batch: clips of a call.
        device: where they run.
    """
    x, labels = torch.randn(batch, 1, *size, device=device), torch.arange(batch, device=device) % classes
    found: dict[str, dict[str, Any]] = {}
    forwards: dict[str, Callable[[], object]] = {}
    steps: dict[str, Callable[[], object]] = {}
    for one in contestants:
        torch.manual_seed(0)
        model = one.build(size, classes).to(device)
        forwards[one.name], steps[one.name] = _forward(model, x), _step(model, x, labels)
        give_back()
        kept = memory(_loss(model, x, labels), device).kept
        found[one.name] = {
            "what": one.what,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "flops": flops(model.eval(), size),
            "kept_bytes": kept / batch,
        }
    for kind, calls in (("forward", forwards), ("training", steps)):
        for call in calls.values():
            call()
        for name, times in interleaved(calls, device, ROUNDS, LIMIT).items():
            found[name][f"{kind}_per_second"] = batch / statistics.median(times)
    return found


def _forward(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        model.eval()
        with torch.no_grad():
            return model(x).sum().item()

    return call


def _loss(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        model.train()
        return F.cross_entropy(model(x), labels)

    return call


def _step(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """A step that changes no weight, so that all calls do the same work."""
    optimizer, loss = torch.optim.AdamW(parameter_groups(model, 0.0), lr=0.0), _loss(model, x, labels)

    def call() -> object:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return call
