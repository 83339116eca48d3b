"""Measuring launch configurations: each one is checked first, and the fastest climbs.

For every kernel that the workloads launch the search starts at the shipped configuration and goes to the
fastest of its neighbours for as long as one is faster. A candidate may win if it compiles, fits into shared
memory, gives the same bits twice, and is as good as the shipped configuration against float64: largest error
at most twice, mean error at most 1.1 times that (twice in float32), plus rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from septr_fast.kernels import launch
from septr_fast.kernels.launch import Choice, Config, Launch
from septr_fast.tuning.ahead import compile_ahead, sentence
from septr_fast.tuning.candidates import OF_PASSES, STAGES, neighbours
from septr_fast.tuning.workloads import Workload

FUSED = {"attention_form": Config({"FUSED": 1}, 1, 1)}
"""The form of the attention in which its fused kernel runs, whatever the table prefers."""

LEAST_GAIN = 0.01
"""By how much of its time a configuration must be faster than another to replace it."""

Measure = Callable[[Callable[[], Any], bool], float]
"""Seconds that a function takes; the flag says whether it does more than launch kernels."""


@dataclass
class Tuned:
    """What was found for one choice.

    Attributes:
        choice: what the configuration is looked up by.
        shipped: the configuration that the tables give.
        best: the fastest that may be used.
        shipped_seconds: time of all launches of the workloads with the shipped configuration.
        seconds: with the best one.
        tried: how many configurations were considered.
        refused: why some were not timed, by configuration.
    """

    choice: Choice
    shipped: Config
    best: Config
    shipped_seconds: float
    seconds: float
    tried: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The entry of a table."""
        config = {"tiles": dict(self.best.tiles), "warps": self.best.warps, "stages": self.best.stages}
        times = {"seconds": self.seconds, "shipped_seconds": self.shipped_seconds}
        key = {"kernel": self.choice.name, "itemsize": self.choice.itemsize, "width": self.choice.width}
        return {**key, **config, **times, "tried": self.tried, "refused": len(self.refused)}


@dataclass
class _Checked:
    """A workload, its exact results, and the largest and mean errors that a candidate may have."""

    workload: Workload
    large: Workload
    choices: list[Choice]
    exact: dict[str, Tensor]
    limits: dict[str, tuple[float, float]]


class Tuner:
    """Measures configurations on one device.

    Args:
        workloads: to check every candidate on, and to time kernels on.
        large: the same with more samples, to time what is chosen for whole passes.
        kernels: names under which configurations are looked up.
        device: where their tensors are.
        measure: a clock.
        deadline: `time.monotonic()` after which nothing new is started.
        jobs: kernels compiled at a time; 0 leaves compiling to the first run.
        most: how many candidates are tried of a kernel.
        report: told of every candidate in a sentence.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        large: Sequence[Workload],
        kernels: Sequence[str],
        device: torch.device,
        measure: Measure,
        *,
        deadline: float = math.inf,
        jobs: int = 0,
        most: int = 1000,
        report: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.device, self.measure = device, measure
        self.deadline, self.jobs, self.most, self.report = deadline, jobs, most, report
        self.arch = launch.architecture(device)
        self.checked: list[_Checked] = []
        served = []
        for workload, larger in zip(workloads, large, strict=True):
            choices, launches = dry_run(workload, self.arch)
            choices = [choice for choice in choices if choice.name in kernels]
            if choices:
                served.append((workload, larger, choices))
                compile_ahead(launches, device, jobs)
        self.checked = [_prepare(*one) for one in served]

    def choices(self) -> list[Choice]:
        """What the workloads choose configurations by, what takes most of the time first, that of passes last."""
        seen = dict.fromkeys(choice for checked in self.checked for choice in checked.choices)
        kernels, of_passes = ([one for one in seen if (one.name in OF_PASSES) == whole] for whole in (False, True))
        if len(kernels) > 1:
            times = {choice: self._seconds(choice, self._shipped(choice)) for choice in kernels}
            kernels.sort(key=lambda choice: -times[choice])
        return kernels + of_passes

    def tune(self, choice: Choice, deadline: float) -> Tuned:
        """Climb from the shipped configuration of `choice`, until `deadline` at the latest."""
        shipped = self._shipped(choice)
        seconds = self._seconds(choice, shipped)
        found = Tuned(choice, shipped, shipped, seconds, seconds)
        seen = {self._fitted(choice, shipped)}
        stages = (1,) if self.arch in launch.UNPIPELINED else STAGES
        while True:
            round_start = found.best
            beside = neighbours(round_start, choice.width, stages)
            step = [config for config in beside if self._is_new(choice, config, seen)]
            for config, reason in self._compiled(choice, step[: self.most - found.tried]):
                if time.monotonic() > min(deadline, self.deadline):
                    return found
                self._try(found, config, reason)
            if found.best == round_start or found.tried >= self.most:
                return found

    def _try(self, found: Tuned, config: Config, reason: str | None) -> None:
        found.tried += 1
        try:
            reason = reason or self._refusal(found.choice, config)
            seconds = math.inf if reason else self._seconds(found.choice, config)
        except Exception as error:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            reason, seconds = sentence(error), math.inf
        if reason:
            found.refused[_text(config)] = reason
        self.report(f"{found.choice.name}: {_text(config)}: {reason or f'{seconds * 1e6:.1f} µs'}")
        if seconds < (1 - LEAST_GAIN) * found.seconds:
            found.best, found.seconds = config, seconds

    def _shipped(self, choice: Choice) -> Config:
        return launch.lookup(choice.name, self.arch, choice.itemsize, choice.width)

    def _users(self, choice: Choice) -> list[_Checked]:
        return [checked for checked in self.checked if choice in checked.choices]

    def _is_new(self, choice: Choice, config: Config, seen: set[str]) -> bool:
        """Whether a candidate can be launched and comes to anything else than those in `seen`, which it joins."""
        try:
            fitted = self._fitted(choice, config)
        except (ArithmeticError, AssertionError, LookupError, ValueError):
            return False
        is_new = fitted not in seen
        seen.add(fitted)
        return is_new

    def _fitted(self, choice: Choice, config: Config) -> str:
        """What launches make of a configuration: tiles are no larger than what they cover."""
        if choice.name in OF_PASSES:
            return _text(config)
        return repr(sorted({_text(launched.config) for launched in self._dry(choice, config)}))

    def _dry(self, choice: Choice, config: Config) -> list[Launch]:
        """The launches of a candidate in all workloads, not run."""
        launches: list[Launch] = []
        for checked in self._users(choice):
            with _trying(choice, config), launch.record(self.arch), launch.capture(_kernel(choice)) as captured:
                checked.workload.run()
            launches += [launched for launched in captured.launches if launched.programs > 0]
        return launches

    def _compiled(self, choice: Choice, configs: Sequence[Config]) -> list[tuple[Config, str | None]]:
        """Compile candidates; why some cannot be run."""
        if choice.name in OF_PASSES:
            return [(config, None) for config in configs]
        launches = [(config, launched) for config in configs for launched in self._dry(choice, config)]
        reasons = compile_ahead([launched for _, launched in launches], self.device, self.jobs)
        failed = {_text(config): reason for (config, _), reason in zip(launches, reasons, strict=True) if reason}
        return [(config, failed.get(_text(config))) for config in configs]

    def _refusal(self, choice: Choice, config: Config) -> str | None:
        """What of a candidate's results is wrong, or None."""
        for checked in self._users(choice):
            with _trying(choice, config):
                first, second = checked.workload.run(), checked.workload.run()
            for name, (largest, mean) in checked.limits.items():
                if not torch.equal(first[name], second[name]):
                    return f"{name} differs from run to run, {checked.workload.name}"
                found = _errors(first[name], checked.exact[name])
                if not (found[0] <= largest and found[1] <= mean):
                    return f"{name} is off by {found[0]:.2e}, {largest:.2e} is allowed, {checked.workload.name}"
        return None

    def _seconds(self, choice: Choice, config: Config) -> float:
        """Time of what a configuration serves: all launches in the workloads, or whole passes for a chunk."""
        total = 0.0
        if choice.name in OF_PASSES:
            with _trying(choice, config):
                return sum(self.measure(checked.large.run, True) for checked in self._users(choice))
        for checked in self._users(choice):
            with _trying(choice, config), launch.capture(_kernel(choice)) as captured:
                checked.workload.run()
            launches = [launched for launched in captured.launches if launched.programs > 0]
            if launches:
                total += self.measure(_again(launches, self.device), False)
        return total


def dry_run(workload: Workload, arch: int) -> tuple[list[Choice], list[Launch]]:
    """What a workload chooses configurations by and launches on `arch`, in either form of its attention."""
    choices: list[Choice] = []
    launches: list[Launch] = []
    for form in ({}, FUSED):
        with launch.record(arch) as recorded, launch.override(form), launch.capture() as captured:
            try:
                workload.run()
            except LookupError:
                continue
        choices += captured.choices
        launches += recorded
    return list(dict.fromkeys(choices)), launches


def _trying(choice: Choice, config: Config) -> AbstractContextManager[None]:
    """Let `config` serve `choice`, and the kernel run that it is chosen for."""
    form = FUSED if choice.name == "fused_attention_fwd" else {}
    return launch.override({**form, choice.name: config})


def _kernel(choice: Choice) -> str:
    """The name of the launches that `choice` configures; the direct form has configurations of its own."""
    return choice.name.removesuffix("_direct")


def _again(launches: Sequence[Launch], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        for launched in launches:
            launch.run(launched, device)

    return run


def _prepare(workload: Workload, large: Workload, choices: list[Choice]) -> _Checked:
    """Run a workload as shipped and in float64."""
    results = workload.run()
    exact = workload.exact()
    limits = {name: _limits(result, exact[name]) for name, result in results.items()}
    for name, (largest, _) in limits.items():
        if not math.isfinite(largest):
            raise ArithmeticError(f"{workload.name}: {name} is not finite with the shipped configurations")
    return _Checked(workload, large, choices, exact, limits)


def _limits(result: Tensor, exact: Tensor) -> tuple[float, float]:
    largest, mean = _errors(result, exact)
    scale = exact.abs().max().item() if exact.numel() else 0.0
    unit = torch.finfo(result.dtype).eps * 2.0 ** math.floor(math.log2(max(scale, torch.finfo(result.dtype).tiny)))
    return 2 * largest + unit, (2.0 if result.dtype == torch.float32 else 1.1) * mean + unit / 32


def _errors(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and mean error."""
    if not exact.numel():
        return 0.0, 0.0
    error = (result.double() - exact).abs()
    return error.max().item(), error.mean().item()


def _text(config: Config) -> str:
    tiles: Mapping[str, int] = config.tiles
    return ", ".join(
        [*(f"{name} {size}" for name, size in tiles.items()), f"{config.warps} warps, {config.stages} stages"]
    )
