"""One model in one case: can it run, is it right, what does it take, and then how long, beside `SepTr`."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu import ceilings as gpu_ceilings
from benchmarks.measuring.company import company
from benchmarks.measuring.memory import Memory, give_back, largest_batch, memory
from benchmarks.measuring.timing import Budget, seconds, threads
from benchmarks.suite import cases, models, parity
from benchmarks.suite.cases import Case
from benchmarks.suite.data import Source
from benchmarks.suite.models import Task
from septr_fast.report.results import OURS, NotRun, Result

SECONDS = {"smoke": 0.0, "brief": 5.0, "quick": 10.0, "full": 20.0}
"""Of timing for each model and case, unless its least number of rounds takes longer."""

GROWTH_SHARE = 0.2
"""Of that for a point of a curve, which is fitted to several."""

MOST_ROUNDS = 50
CLOSE = 2
"""Times as many rounds at least for a model that differs from `SepTr` by little."""

AGAIN = 1000
"""The first draw of inputs that are not timed."""

COMPILE_SECONDS = 90.0
"""A guess for the first compilation; later ones go by the slowest so far."""


class Runner:
    """Runs the cases of a session and collects what it finds.

    Args:
        setting: "smoke", "brief", "quick" or "full".
        device: where the models run.
        source: of the inputs.
        budget: of the whole session.
        limit: bytes that a largest batch may take.
        notify: called with what happens next.
    """

    def __init__(
        self,
        setting: str,
        device: torch.device,
        source: Source,
        budget: Budget,
        limit: int,
        notify: Callable[[str], None],
    ) -> None:
        self.setting, self.device, self.source = setting, device, source
        self.budget, self.limit, self.notify = budget, limit, notify
        self.results: list[Result] = []
        self.not_run: list[NotRun] = []
        self.compile_seconds: list[float] = []
        self._exact: dict[tuple[str, str, int, int], tuple[parity.Outcome, parity.Errors]] = {}
        self._beside: tuple[Case, Task, float] | None = None

    def run(self, benchmark: Any, case: Case, name: str) -> None:
        """Time a model in a case, after it is shown to be right; skip the test where it cannot run."""
        self.notify(f"{case.name}: {name}")
        reason = models.why_not(name, case, self.device) or self._why_no_time(case, name)
        if reason is not None:
            self._skip(case, name, reason)
        with models.precision(case.precision):
            try:
                self._run(benchmark, case, name)
            except Exception as error:
                reason = _why_failed(error)
                if reason is None or (name == OURS and not isinstance(error, parity.NoRoomError)):
                    raise
            finally:
                self._free()
        if reason is not None:
            self._skip(case, name, reason)

    def ceilings(self, names: set[str]) -> dict[str, float]:
        """Copy in bytes and products in FLOP per second, for the precisions `names`."""
        smoke, on_gpu = self.setting == "smoke", self.device.type == "cuda"
        size, length = (64, 1 << 16) if smoke else (8192, 1 << 30) if on_gpu else (2048, 1 << 28)
        found = {"copy": float(gpu_ceilings.copy(self.device, length)["bytes_per_second"])}
        for name in gpu_ceilings.PRECISIONS:
            if name in names or (name == "bfloat16" and "autocast" in names):
                self.notify(f"the device's matrix product in {name}")
                found[name] = float(gpu_ceilings.product(name, size, self.device)["flops_per_second"])
        if "bfloat16" in found:
            found["autocast"] = found["bfloat16"]
        return found

    def _run(self, benchmark: Any, case: Case, name: str) -> None:
        if case.group == cases.LARGEST:
            case = self._at_largest_batch(case, name)
        classes = self.source.num_classes(case)
        model = models.build(name, case, classes, self.device, smoke=self.setting == "smoke")
        kernel = models.attention(name, case, self.device)
        context = partial(models.settings, case, self.device, kernel)
        stream = self.source.batches(case, models.dtype(case))
        error = self._check(model, case, name, next(stream), context)
        task = models.task(model, case, self.device, kernel)
        start = time.monotonic()
        used, kept = self._memory(model, task, case, name, next(stream), context)
        expected = (time.monotonic() - start) / 2
        beside = None
        if name != OURS and case.group != cases.LARGEST:
            beside, taken = self._ours(case, classes)
            expected += taken
        own, ours = self._time(benchmark, case, name, task, beside, stream, expected)
        found = Result(
            group=case.group,
            case=case.name,
            model=name,
            shape=case.shape,
            size=case.size,
            batch=case.batch,
            precision=case.precision,
            seconds=statistics.median(own),
            lower_quartile=_quartile(own, 0),
            upper_quartile=_quartile(own, 2),
            rounds=len(own),
            **_ratios(own, ours),
            ours_seconds=statistics.median(ours) if ours else None,
            flops=models.flops(name, case, classes, self.device),
            useful_flops=models.least_flops(name, case, classes),
            parameters=None if case.group in cases.PARTS else sum(p.numel() for p in model.parameters()),
            audio_seconds=case.audio_seconds,
            saved_bytes=kept,
            peak_bytes=used,
            error=error,
            at=case.at,
            note=self._note(case, kernel),
        )
        self.results.append(found)
        benchmark.extra_info.update(asdict(found))

    def _check(
        self, model: nn.Module, case: Case, name: str, inputs: tuple[Tensor, ...], context: parity.Context
    ) -> float:
        """The largest error of the outputs; raise `ParityError` where they, or the gradients, are not right.

        The baseline runs few samples. Of many, plain PyTorch's own last layer is up to three times as far off (on a
        CPU, from a batch of 12): a largest batch has the looser limit, and the model the close one on as few samples.
        """
        if case.group == cases.LARGEST and case.batch > parity.SAMPLES:
            few = tuple(x[: parity.SAMPLES] for x in inputs)
            self._check(model, replace(case, batch=parity.SAMPLES), name, few, context)
        unit = torch.finfo(torch.bfloat16 if case.precision == "autocast" else models.dtype(case)).eps
        unit = 2.0**-10 if case.precision == "tf32" else unit
        loose = name in cases.COMPILED or (case.group == cases.LARGEST and case.batch > parity.SAMPLES)
        loose = loose and case.precision == "float32"
        check = partial(parity.check, unit=unit, name=f"{case.name}, {name}", loose=loose)
        comparison = self._compare(model, case, name, inputs, context)
        try:
            check(comparison)
        except parity.ParityError as error:
            if not error.share <= parity.CHANCE:
                raise
            comparison = parity.together(
                [
                    self._compare(model, case, name, self.source.drawn(case, models.dtype(case), draw), context, draw)
                    for draw in range(AGAIN, AGAIN + parity.AGAIN)
                ]
            )
            check(comparison)
        return comparison.found.outputs

    def _compare(
        self,
        model: nn.Module,
        case: Case,
        name: str,
        inputs: tuple[Tensor, ...],
        context: parity.Context,
        draw: int = 0,
    ) -> parity.Comparison:
        """A model on one batch, the first of the case or `draw` of others."""
        *given, labels = inputs
        wanted = labels if case.training else None
        kind = name if name in cases.PATCH_MODELS else cases.REFERENCE
        key = case.name, kind, min(case.batch, parity.SAMPLES), draw
        if key not in self._exact:
            if not any(name == case.name for name, *_ in self._exact):
                self._exact.clear()
            self.notify(f"{case.name}: {kind} in float64")
            plain = models.plain(name, case, self.source.num_classes(case), self.device)
            self._exact[key] = _baseline(plain, tuple(given), wanted, partial(models.settings, case, self.device))
        exact, plain_errors = self._exact[key]
        self.notify(f"{case.name}: {name}, is it right?")
        start = time.monotonic()
        found = parity.errors(parity.outcome(model, tuple(given), wanted, context), exact)
        if name in cases.COMPILED and draw == 0:
            self.compile_seconds.append(time.monotonic() - start)
        return parity.Comparison(found, plain_errors, exact.outputs.abs().max().item())

    def _memory(
        self,
        model: nn.Module,
        task: Task,
        case: Case,
        name: str,
        inputs: tuple[Tensor, ...],
        context: parity.Context,
    ) -> tuple[int | None, int | None]:
        """Bytes at the peak of a call, and bytes kept for the backward pass, the result left out."""
        self.notify(f"{case.name}: {name}, memory")
        if self.device.type == "cuda":
            task(*inputs)
        if name == cases.GRAPH:
            return None, None
        used = self._watch(lambda: task(*inputs)).peak
        if not case.training:
            return used, None

        def forward() -> Any:
            with context():
                return model(inputs[0])

        return used, self._watch(forward).kept

    def _watch(self, call: Callable[[], Any]) -> Memory:
        gc.collect()
        return memory(call, self.device)

    def _ours(self, case: Case, classes: int) -> tuple[Task, float]:
        """`SepTr`'s task for the case, warm, and the seconds that it takes; kept while the case lasts."""
        if self._beside is None or self._beside[0] != case:
            self._beside = None
            model = models.build(OURS, case, classes, self.device)
            task = models.task(model, case, self.device)
            inputs = next(self.source.batches(case, models.dtype(case)))
            task(*inputs)
            self._beside = case, task, seconds(lambda: task(*inputs), self.device)
        return self._beside[1:]

    def _time(
        self,
        benchmark: Any,
        case: Case,
        name: str,
        task: Task,
        beside: Task | None,
        stream: Iterator[tuple[Tensor, ...]],
        expected: float,
    ) -> tuple[list[float], list[float]]:
        """Times of the task, and of `SepTr` right before each.

        A machine that is shared or that warms up changes its speed within minutes: two medians taken one
        after the other can differ by a third. The ratio of two calls side by side does not.
        """
        cpu = torch.device("cpu")
        limit = SECONDS[self.setting] * (GROWTH_SHARE if case.group in cases.GROWTH else 1)
        least = CLOSE * case.rounds if name == cases.OURS_COMPILED else case.rounds
        rounds = min(MOST_ROUNDS, max(least, int(limit / max(expected, 1e-6))))
        own: list[float] = []
        ours: list[float] = []
        last: list[Tensor] = []
        count = itertools.count(1)

        def setup() -> tuple[tuple[Tensor, ...], dict[str, Any]]:
            inputs = next(stream)
            self.notify(f"{case.name}: {name}, round {next(count)} of {rounds}")
            if beside is not None:
                ours.append(seconds(lambda: beside(*inputs), cpu))
            return inputs, {}

        def timed(*inputs: Tensor) -> Any:
            start = time.perf_counter()
            result = task(*inputs)
            own.append(time.perf_counter() - start)
            last[:] = [result] if isinstance(result, Tensor) else result
            return result

        benchmark.group = case.name
        with company(case.busy), threads(1 if case.group == cases.ONE_THREAD else torch.get_num_threads()):
            benchmark.pedantic(timed, setup=setup, rounds=rounds, warmup_rounds=0)
        parity.check_finite(last, f"{case.name}, {name}")
        return own, ours

    def _at_largest_batch(self, case: Case, name: str) -> Case:
        """The case with the largest batch whose training step stays within the limit."""

        def peak(batch: int) -> int | None:
            self.notify(f"{case.name}: {name}, a batch of {batch}")
            try:
                return self._peak(replace(case, batch=batch), name)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            self._free()
            return None

        found = largest_batch(peak, self.limit)
        if found == 0:
            self._skip(case, name, f"a batch of one takes more than {self.limit / 2**20:.0f} MiB")
        return replace(case, batch=found)

    def _peak(self, case: Case, name: str) -> int:
        """Bytes at the peak of a call, on a GPU of one after the first."""
        task = models.task(models.build(name, case, self.source.num_classes(case), self.device), case, self.device)
        inputs = next(self.source.batches(case, models.dtype(case)))
        if self.device.type == "cuda":
            task(*inputs)
        return self._watch(lambda: task(*inputs)).peak

    def _note(self, case: Case, kernel: Any) -> str:
        if case.group == cases.LARGEST:
            return f"in {self.limit / 2**20:.0f} MiB beside parameters, optimizer state and inputs"
        return "" if kernel is None else f"attention: {kernel.name}"

    def _why_no_time(self, case: Case, name: str) -> str | None:
        expected = max(self.compile_seconds, default=COMPILE_SECONDS) if name in cases.COMPILED else 0.0
        if self.setting == "smoke":
            expected = 0.0
        return None if self.budget.allows(f"{case.name}: {name}", expected) else "no time was left for it"

    def _skip(self, case: Case, name: str, reason: str) -> None:
        """Note what does not run, and end the test."""
        self.not_run.append(NotRun(case.name, name, reason))
        pytest.skip(reason)

    def _free(self) -> None:
        gc.collect()
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _baseline(
    plain: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, context: parity.Context
) -> tuple[parity.Outcome, parity.Errors]:
    """What `plain` gives in float64, and its errors as it usually runs."""
    try:
        exact = parity.exact(plain, inputs, labels)
        return exact, parity.errors(parity.usual(plain, inputs, labels, context), exact)
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise parity.NoRoomError from error
        raise


def _ratios(own: list[float], ours: list[float]) -> dict[str, float]:
    """Fields of a `Result`: a model's times over those of `SepTr` beside them."""
    if not ours:
        return {}
    ratios = [mine / yours for mine, yours in zip(own, ours, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest_ratio": min(ratios), "highest_ratio": max(ratios)}


def _quartile(times: list[float], index: int) -> float:
    return statistics.quantiles(times, n=4, method="inclusive")[index] if len(times) > 1 else times[0]


def _why_failed(error: Exception) -> str | None:
    """Why a baseline cannot run here, in a line, where that is its own or the machine's fault; None otherwise."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, parity.NoRoomError):
        return "the check against float64 takes more memory than there is"
    if _is_out_of_memory(error):
        return "out of memory"
    if isinstance(error, torch._dynamo.exc.TorchDynamoException):
        return f"torch.compile fails: {first[:200]}"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
