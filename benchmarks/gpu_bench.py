"""The default model against its baselines: time, memory, and the share of the device's matrix product."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from septr_fast.kernels import launch
from torch import Tensor, nn

from benchmarks import gpu_ceilings, parity
from benchmarks.baselines import attention_kernel, with_fused_attention
from benchmarks.gpu_check import TINY, TINY_TILES, captured, gradient_step
from benchmarks.measure import saved_bytes
from benchmarks.timing import Budget, Call, interleaved, spread
from septr_fast import SepTr, reference

OURS, GRAPH, ON_TORCH = "septr_fast", "septr_fast, CUDA graph", "septr_fast on PyTorch"
PLAIN, COMPILED, FUSED = "reference", "reference, compiled", "reference, fused attention, compiled"
ALL = (OURS, GRAPH, ON_TORCH, PLAIN, COMPILED, FUSED)
ESSENTIAL = (OURS, GRAPH, FUSED)
ROUNDS = 20
SECONDS_OF_A_CASE = 12.0
COMPILE_SECONDS = 60.0
"""A guess for the first compilation; later ones go by the slowest so far."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        task: "inference", or "training step": forward, cross entropy and backward.
        precision: "bfloat16", "autocast" (to bfloat16, parameters in float32) or "float32".
        batch: spectrograms at a time.
        models: names of the models that are compared.
    """

    task: str
    precision: str
    batch: int
    models: tuple[str, ...] = ESSENTIAL

    @property
    def name(self) -> str:
        """Readable."""
        return f"{self.task}, {self.precision}, batch {self.batch}"


CASES = (
    Case("inference", "bfloat16", 64, ALL),
    Case("training step", "bfloat16", 16, ALL),
    Case("inference", "bfloat16", 1, ALL),
    Case("training step", "bfloat16", 64, (OURS, FUSED)),
    Case("training step", "bfloat16", 1),
    Case("inference", "bfloat16", 256, (OURS, ON_TORCH, FUSED)),
    Case("inference", "autocast", 64),
    Case("training step", "autocast", 16),
    Case("inference", "float32", 64),
    Case("training step", "float32", 16),
)
"""What matters most first: later ones may be left out for want of time."""

TINY_CASES = (Case("inference", "float32", 1, ALL), Case("training step", "float32", 1, (OURS, FUSED)))


def measure(device: torch.device, tiny: bool, budget: Budget) -> dict[str, Any]:
    """Time all cases on `device`."""
    with launch.override(TINY_TILES if tiny else {}):
        bench = Bench(device, tiny, budget)
        results: dict[str, Any] = {
            "product": gpu_ceilings.product("bfloat16", 64 if tiny else 8192, device),
            "saved": bench.saved(),
            "attention_kernel": bench.attention_kernel(),
            "parity": [bench.parity(task) for task in ("inference", "training step")],
        }
        rate = results["product"]["flops_per_second"]
        cases = [case for case in (TINY_CASES if tiny else CASES) if budget.allows(case.name, 15 * (not tiny))]
        results["cases"] = [bench.run(case, rate) for case in cases if budget.allows(case.name, 15 * (not tiny))]
    right = all(entry["as_good"] for entry in results["parity"])
    return {**results, "passed": right}


class Bench:
    """Builds models and times them."""

    def __init__(self, device: torch.device, tiny: bool, budget: Budget) -> None:
        self.device, self.tiny, self.budget = device, tiny, budget
        self.config: dict[str, Any] = TINY if tiny else {}
        self.compile_seconds: list[float] = [0.0] if tiny else []

    def run(self, case: Case, rate: float) -> dict[str, Any]:
        """Times, memory and rates of one case; models that cannot run are named with the reason."""
        x, labels = self._batch(case.batch, torch.bfloat16 if case.precision == "bfloat16" else torch.float32)
        calls, peaks, failures = {}, {}, {}
        torch.compiler.reset()
        for name in case.models:
            compiles = name in (COMPILED, FUSED)
            expected = max(self.compile_seconds, default=COMPILE_SECONDS) if compiles else 0.0
            if not self.budget.allows(f"{case.name}: {name}", expected):
                continue
            before = self.budget.left
            try:
                calls[name], peaks[name] = self._ready(name, case, x, labels)
                if compiles:
                    self.compile_seconds.append(before - self.budget.left)
            except torch.cuda.OutOfMemoryError:
                failures[name] = "out of memory"
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._free()
        limit = max(1.0, min(SECONDS_OF_A_CASE, self.budget.left))
        times = interleaved(calls, self.device, 1 if self.tiny else ROUNDS, limit)
        calls.clear()
        self._free()
        useful = SepTr(**self.config).plan().flops(case.batch, folded=case.task == "inference")
        useful *= 1 if case.task == "inference" else 3
        entries = {name: self._entry(name, times, case.batch, useful, rate, peaks) for name in times}
        return {**asdict(case), "name": case.name, "useful_flops": useful, "models": entries, "failures": failures}

    def saved(self) -> dict[str, float]:
        """Bytes kept for the backward pass in bfloat16, that one more spectrogram adds to each transformer."""
        batch, dtype = 1 if self.tiny else 2, torch.float32 if self.tiny else torch.bfloat16
        found = {}
        for name in (OURS, ON_TORCH, PLAIN):
            model = self._build(name, dtype).train()
            once, twice = (saved_bytes(model, self._batch(samples, dtype)[0]) for samples in (batch, 2 * batch))
            found[name] = (twice - once) / batch / (2 * len(model.transformer))
        return found

    def attention_kernel(self) -> dict[str, str]:
        """The kernels that `scaled_dot_product_attention` takes for the fused baseline."""
        shape = SepTr(**self.config).plan().steps[0].shape
        sizes = (shape.rows, shape.heads, shape.tokens, shape.dim_head)
        dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        return {name: attention_kernel(*sizes, dtype, self.device) for name, dtype in dtypes.items()}

    def parity(self, task: str) -> dict[str, Any]:
        """Errors of this package and of the reference in the same dtype, against float64."""
        dtype, training = torch.float32 if self.tiny else torch.bfloat16, task == "training step"
        x, labels = self._batch(1 if self.tiny else 2, dtype)
        models = {name: self._build(name, dtype).train(training) for name in (PLAIN, OURS)}
        exact = parity.exact(models[PLAIN], x, labels, training)
        plain, ours = (parity.errors(model, x, labels, exact) for model in models.values())
        try:
            parity.check(ours, plain, exact, OURS)
            as_good = True
        except parity.ParityError:
            as_good = False
        return {"task": task, "as_good": as_good, OURS: asdict(ours), PLAIN: asdict(plain)}

    def _ready(self, name: str, case: Case, x: Tensor, labels: Tensor) -> tuple[Call, int]:
        """A call of a model that is warm, and the bytes that its calls take beside parameters and inputs."""
        training = case.task == "training step"
        model = self._build(name, x.dtype).train(training)
        task = _step(model, training, x, labels, self._autocast(case))
        self._free()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        call = self._captured(task) if name == GRAPH else task
        for _ in range(1 if self.tiny else 3):
            call()
        peak = torch.cuda.max_memory_allocated(self.device) - before if self.device.type == "cuda" else 0
        return call, peak

    def _captured(self, task: Call) -> Call:
        if self.device.type != "cuda":
            raise RuntimeError("graphs need a CUDA device")
        graph, result = captured(task)

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def _build(self, name: str, dtype: torch.dtype) -> Any:
        """The model `name`, every one with the same parameters."""
        torch.manual_seed(0)
        if name in (OURS, GRAPH, ON_TORCH):
            model: nn.Module = SepTr(**self.config, backend="torch" if name == ON_TORCH else "triton")
        else:
            plain = reference.SepTr(**self.config)
            model = with_fused_attention(plain) if name == FUSED else plain
        model = model.to(self.device, dtype)
        if name in (COMPILED, FUSED):
            return torch.compile(model, backend="eager" if self.tiny else "inductor", dynamic=False)
        return model

    def _batch(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        size = self.config.get("input_size", (128, 128))
        x = torch.randn(batch, 1, *size, device=self.device, dtype=dtype)
        return x, torch.arange(batch, device=self.device) % 35

    def _autocast(self, case: Case) -> Callable[[], AbstractContextManager[Any]]:
        if case.precision != "autocast":
            return nullcontext
        return lambda: torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _entry(
        self, name: str, times: dict[str, list[float]], batch: int, useful: int, rate: float, peaks: dict[str, int]
    ) -> dict[str, Any]:
        middle = statistics.median(times[name])
        entry = {
            **spread(times[name]),
            "spectrograms_per_second": batch / middle,
            "peak_bytes": peaks[name],
            "useful_flops_per_second": useful / middle,
            "share_of_product": useful / middle / rate,
        }
        for baseline in (FUSED, PLAIN):
            if baseline in times:
                ratios = [other / own for own, other in zip(times[name], times[baseline], strict=True)]
                entry[f"times as fast as {baseline}"] = statistics.median(ratios)
        return entry

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _step(
    model: nn.Module, training: bool, x: Tensor, labels: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> Call:
    """A function that does the task once."""

    def infer() -> Tensor:
        with torch.no_grad(), autocast():
            logits: Tensor = model(x)
        return logits

    def train() -> Tensor:
        with autocast():
            return gradient_step(model, x, labels)

    return train if training else infer


def summary(results: dict[str, Any]) -> str:
    """To read."""
    return "\n".join(_lines(results))


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield f"product in bfloat16: {results['product']['flops_per_second'] / 1e12:.1f} TFLOP/s"
    for entry in results["parity"]:
        yield f"{entry['task']}: {'as good as' if entry['as_good'] else 'WORSE THAN'} the reference against float64"
    for name, size in results["saved"].items():
        yield f"kept for backward of a spectrogram and transformer: {size / 1e6:.1f} MB, {name}"
    for case in results["cases"]:
        yield f"\n{case['name']}"
        for name, entry in case["models"].items():
            ratio = entry.get(f"times as fast as {FUSED}", float("nan"))
            yield (
                f"  {name:38} {entry['seconds'] * 1e3:9.2f} ms  {entry['spectrograms_per_second']:9.1f}/s  "
                f"{entry['share_of_product']:6.1%} of the product  {entry['peak_bytes'] / 1e9:6.2f} GB  {ratio:5.2f} x"
            )
        for name, reason in case["failures"].items():
            yield f"  {name:38} {reason}"
