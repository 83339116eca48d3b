"""Whether the kernels are right on this device.

The parts, each with what it finds in the file's `results`: `replay`, the tests that take a device, compiled; `repeat`,
the same bits in every run; `graphs`, the same bits from replayed CUDA graphs; `stream`, and on a stream beside a busy
one; `configurations`, every launch configuration alone; `corpus`, drawn cases; `sanitize`, a step under
`compute-sanitizer`. `errors` holds the traceback of a part that could not run, `unfinished` what there was no time for.
`benchmarks.gpu.figures` reads it all.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from septr_fast.kernels import launch
from torch import Tensor

from benchmarks.gpu import figures as gpu_figures
from benchmarks.gpu.checks.compiling import compile_calls
from benchmarks.gpu.checks.configurations import configurations
from benchmarks.gpu.checks.corpus import corpus
from benchmarks.gpu.checks.replay import replay
from benchmarks.gpu.checks.sanitize import sanitize
from benchmarks.measuring.graphs import captured
from benchmarks.measuring.timing import Budget
from benchmarks.suite.shapes import FEW_TOKENS
from septr_fast import SepTr, graphed
from septr_fast.tuning.workloads import Workload, workloads

REPEATS = {torch.bfloat16: 1000, torch.float16: 100, torch.float32: 100}
LOOK_AT_CLOCK = 10
"""Runs that are started without waiting for the device."""

Keep = Callable[[dict[str, Any]], None]

TINY_TILES = {
    "low_rank_fwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 1}),
    "low_rank_bwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 1}),
}
"""Few programs, for the interpreter."""


class Part(NamedTuple):
    """A part of the stage.

    Attributes:
        run: what finds its results, from the device, whether shapes are tiny, a budget and the folder for logs;
            an iterator gives a list entry by entry.
        share: of the stage's time, in relation to those of the other parts.
        needs_gpu: whether it cannot be rehearsed.
    """

    run: Callable[[torch.device, bool, Budget, Path], Any]
    share: float
    needs_gpu: bool = False


PARTS = {
    "replay": Part(replay, 6),
    "repeat": Part(lambda device, tiny, budget, out: repeat(device, tiny, budget), 3),
    "graphs": Part(lambda device, tiny, budget, out: graphs(device, tiny), 0.5, needs_gpu=True),
    "stream": Part(lambda device, tiny, budget, out: other_stream(device, tiny), 0.5, needs_gpu=True),
    "configurations": Part(lambda device, tiny, budget, out: configurations(device, tiny, budget), 3),
    "corpus": Part(corpus, 3),
    "sanitize": Part(sanitize, 4, needs_gpu=True),
}


def measure(
    device: torch.device,
    tiny: bool,
    budget: Budget,
    out: Path,
    only: Collection[str] = tuple(PARTS),
    keep: Keep = lambda results: None,
) -> dict[str, Any]:
    """The parts called `only` on `device`; `passed` tells whether all of each was tried and nothing failed.

    What a part leaves of its time goes to those behind it; what it raises is noted, and the others run.

    Args:
        device: of the kernels.
        tiny: whether shapes have few tokens.
        budget: of the stage.
        out: folder for logs.
        only: names out of `PARTS`.
        keep: told the results whenever there are more of them.
    """
    results: dict[str, Any] = {"unfinished": budget.unfinished}
    chosen = [name for name in PARTS if name in only]
    budget.left_out += [f"{name}: not asked for" for name in PARTS if name not in only]
    for place, name in enumerate(chosen):
        part, share = PARTS[name], PARTS[name].share / sum(PARTS[other].share for other in chosen[place:])
        if part.needs_gpu and device.type != "cuda":
            budget.left_out.append(f"{name}: it needs a CUDA device")
            continue
        try:
            with launch.override(TINY_TILES if tiny else {}):
                _gather(name, part.run(device, tiny, budget.part(share), out), results, keep)
        except Exception:
            results.setdefault("errors", {})[name] = traceback.format_exc()
        keep(results)
    return {**results, "passed": not (gpu_figures.faults(results) or budget.unfinished)}


def _gather(name: str, found: Any, results: dict[str, Any], keep: Keep) -> None:
    """Put what a part finds into `results`, entry by entry where it can be had so."""
    if not isinstance(found, Iterator):
        results[name] = found
        return
    results[name] = []
    for entry in found:
        results[name].append(entry)
        keep(results)


def repeat(device: torch.device, tiny: bool, budget: Budget) -> Iterator[dict[str, Any]]:
    """Run every pass forward and backward many times; count the runs that differ in a bit.

    Yields:
        Of every `pass` the number of `runs`, how many were `wanted`, and how many were `different`.
    """
    for dtype in (torch.float32,) if tiny else REPEATS:
        times = 1 if tiny else REPEATS[dtype]
        drawn = list(workloads(FEW_TOKENS if tiny else {}, [dtype], 1, device))
        if tiny:
            drawn = [one for one in drawn if one.formulation in ("low-rank", "class-only") or one.shape.axis == "width"]
        if budget.left > 0:
            compile_calls([one.run for one in drawn], device)
        for workload in drawn:
            done, different = _repeat(workload, times, budget)
            if done < times:
                budget.cut(f"repeat {workload.name}: {times - done} of {times} runs")
            yield {"pass": workload.name, "runs": done, "wanted": times, "different": different}


def _repeat(workload: Workload, times: int, budget: Budget) -> tuple[int, int]:
    """Runs done until `times` or until the time is over, and how many differ from the one before them all."""
    different = torch.zeros((), dtype=torch.int64, device=workload.tokens.device)
    first: dict[str, Tensor] = {}
    done = 0
    while done < times and (done % LOOK_AT_CLOCK or budget.left > 0):
        first = first or workload.run()
        different += torch.stack([_bits(x).ne(_bits(first[name])).any() for name, x in workload.run().items()]).any()
        done += 1
        if done % LOOK_AT_CLOCK == 0:
            different.item()
    return done, int(different)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def graphs(device: torch.device, tiny: bool) -> dict[str, bool]:
    """Whether replays of captured graphs give the bits of plain calls, for inputs that were not captured.

    By a graph of the user's, in which the weights are folded, by `septr_fast.graphed`, and of a step of training;
    half of the replays of the former two are with other weights than were captured.
    """
    model, spectrograms = _model(device, tiny)
    labels = torch.zeros(len(spectrograms[0]), dtype=torch.long, device=device)
    inference, training = model.eval(), copy.deepcopy(model).train()
    with torch.no_grad():
        compile_calls([lambda: inference(spectrograms[0])], device)
    compile_calls([lambda: gradient_step(training, spectrograms[0], labels)], device)
    static, fast = spectrograms[0].clone(), graphed(inference)
    with torch.no_grad():
        graph, logits = captured(lambda: inference(static))
    same_logits, same_graphed = [], []
    for round_ in range(2):
        for x in spectrograms:
            static.copy_(x)
            graph.replay()
            with torch.no_grad():
                same_logits.append(torch.equal(logits, inference(x)))
                same_graphed += [_same(cast(Tensor, fast(x)), inference(x)) for _ in range(3)]
        if round_ == 0:
            with torch.no_grad():
                for parameter in inference.parameters():
                    parameter.mul_(1.01)
    plain = copy.deepcopy(training)
    step, _ = captured(lambda: gradient_step(training, static, labels))
    same_gradients = []
    for x in spectrograms:
        static.copy_(x)
        step.replay()
        gradient_step(plain, x, labels)
        pairs = zip(training.parameters(), plain.parameters(), strict=True)
        same_gradients.append(all(_same(one.grad, other.grad) for one, other in pairs))
    return {"inference": all(same_logits), "graphed": all(same_graphed), "training step": all(same_gradients)}


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def gradient_step(model: torch.nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Forward, cross entropy and backward; the gradients replace earlier ones."""
    model.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x).float(), labels)
    loss.backward()
    return loss.detach()


def other_stream(device: torch.device, tiny: bool) -> bool:
    """Whether a step on another stream than the default one gives the same bits, while that one is busy."""
    model, (x, *_) = _model(device, tiny)
    labels = torch.zeros(len(x), dtype=torch.long, device=device)
    other = copy.deepcopy(model)
    compile_calls([lambda: gradient_step(model, x, labels)], device)
    gradient_step(model, x, labels)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(100_000_000)
    with torch.cuda.stream(torch.cuda.Stream()):
        gradient_step(other, x.clone(), labels)
    torch.cuda.synchronize(device)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(_same(one.grad, another.grad) for one, another in pairs)


def _model(device: torch.device, tiny: bool) -> tuple[SepTr, list[Tensor]]:
    """The default model in bfloat16 on Triton, and three batches of spectrograms."""
    config: dict[str, Any] = FEW_TOKENS if tiny else {}
    model = SepTr(**config, backend="triton").to(device, torch.bfloat16)
    size = config.get("input_size", (128, 128))
    return model, [torch.randn(2, 1, *size, device=device, dtype=torch.bfloat16) for _ in range(3)]


def summary(results: dict[str, Any]) -> str:
    """To read."""
    lines = [f"{part.what}: {part.tried} tried, {part.wrong} wrong" for part in gpu_figures.parts(results)]
    faults, unfinished = gpu_figures.faults(results), results.get("unfinished", [])
    end = f"NOT passed: {len(faults)} faults, {len(unfinished)} unfinished" if faults or unfinished else "passed"
    return "\n".join([*lines, *(f"  {fault}" for fault in faults), end])
