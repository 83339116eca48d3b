"""Whether the kernels are right on this device: the tests, the same bits in every run, graphs and streams."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from septr_fast.kernels import launch
from torch import Tensor

from benchmarks.bare import ROOT
from benchmarks.graphs import captured
from benchmarks.timing import Budget
from septr_fast import SepTr
from septr_fast.workloads import Workload, workloads

REPLAY_SHARE = 0.6
"""Of the stage's time."""

REPEATS = {torch.bfloat16: 1000, torch.float16: 100, torch.float32: 100}
TINY = {"input_size": (2, 2), "depth": 1, "heads": 2, "dim_head": 8, "dim": 16, "mlp_dim": 16}
TINY_TESTS = ["tests/test_kernel_normalization.py", "-k", "no_tokens or too_many_features"]
TINY_TILES = {
    "low_rank_fwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 1}),
    "low_rank_bwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 1}),
}
"""Few programs, for the interpreter."""


def measure(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """All checks on `device`; `passed` tells whether nothing failed."""
    results: dict[str, Any] = {"replay": replay(device, tiny, budget, out)}
    with launch.override(TINY_TILES if tiny else {}):
        results["repeat"] = repeat(device, tiny, budget)
        if device.type == "cuda":
            results["graphs"] = graphs(device, tiny)
            results["stream"] = other_stream(device, tiny)
        else:
            budget.left_out += ["graphs: they need a CUDA device", "stream: it needs a CUDA device"]
    counts = results["replay"]["counts"]
    right = [not counts.get("failed") and bool(counts.get("passed")), not results["replay"]["unfinished"]]
    right += [not entry["different"] for entry in results["repeat"]]
    right += [*results.get("graphs", {}).values(), results.get("stream", True)]
    return {**results, "passed": all(right)}


def replay(device: torch.device, tiny: bool, budget: Budget, out: Path) -> dict[str, Any]:
    """Run the tests that take a device, in several processes, and count how they end."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_*.py"))}
    files = [str(path.relative_to(ROOT)) for path, text in texts.items() if "device: torch.device" in text]
    parts = 1 if tiny else min(8, os.cpu_count() or 1)
    limit = REPLAY_SHARE * budget.left
    started = []
    for part in range(parts):
        outcomes = out / f"replay-{part}.jsonl"
        outcomes.unlink(missing_ok=True)
        options = ["--device", device.type, "--part", f"{part}/{parts}", "--outcomes", str(outcomes.resolve())]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.replay", "-p", "no:cacheprovider", *options]
        with (out / f"replay-{part}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, *(TINY_TESTS if tiny else files)],
                cwd=ROOT,
                env=_environment(device),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append((process, outcomes))
    end = budget.left - limit
    codes = [_finish(process, max(1.0, budget.left - end)) for process, _ in started]
    found = [json.loads(line) for _, path in started if path.exists() for line in path.read_text().splitlines()]
    unfinished = [f"part {part}: {_ending(code)}" for part, code in enumerate(codes) if code not in (0, 1)]
    failures = [entry for entry in found if entry["outcome"] == "failed"]
    return {"counts": Counter(entry["outcome"] for entry in found), "failures": failures, "unfinished": unfinished}


def _environment(device: torch.device) -> dict[str, str]:
    """What pytest needs: this checkout on the path, and no setting of another run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **({} if device.type == "cuda" else {"TRITON_INTERPRET": "1"})}


def _finish(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The status of a process, which is ended after `limit` seconds; None then."""
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _ending(code: int | None) -> str:
    return "out of time" if code is None else f"pytest ended with status {code}"


def repeat(device: torch.device, tiny: bool, budget: Budget) -> list[dict[str, Any]]:
    """Run every pass forward and backward many times; count the runs that differ in a bit."""
    found = []
    for dtype in (torch.float32,) if tiny else REPEATS:
        for workload in workloads(TINY if tiny else {}, [dtype], 1, device):
            if tiny and workload.formulation in ("direct", "merged") and workload.shape.axis == "height":
                continue
            if budget.allows(f"repeat {workload.name}", 20 if device.type == "cuda" else 0):
                found.append({"pass": workload.name, **_repeat(workload, 1 if tiny else REPEATS[dtype], budget)})
    return found


def _repeat(workload: Workload, times: int, budget: Budget) -> dict[str, int]:
    first = workload.run()
    different = torch.zeros((), dtype=torch.int64, device=workload.tokens.device)
    done = 0
    while done < times and (done % 50 or budget.left > 0):
        different += torch.stack([_bits(x).ne(_bits(first[name])).any() for name, x in workload.run().items()]).any()
        done += 1
    return {"runs": done, "different": int(different)}


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def graphs(device: torch.device, tiny: bool) -> dict[str, bool]:
    """Whether replays of captured graphs give the bits of plain calls, for inputs that were not captured."""
    model, spectrograms = _model(device, tiny)
    labels = torch.zeros(len(spectrograms[0]), dtype=torch.long, device=device)
    inference, training = model.eval(), copy.deepcopy(model).train()
    static = spectrograms[0].clone()
    with torch.no_grad():
        graph, logits = captured(lambda: inference(static))
    same_logits = []
    for x in spectrograms:
        static.copy_(x)
        graph.replay()
        with torch.no_grad():
            same_logits.append(torch.equal(logits, inference(x)))
    plain = copy.deepcopy(training)
    step, _ = captured(lambda: gradient_step(training, static, labels))
    same_gradients = []
    for x in spectrograms:
        static.copy_(x)
        step.replay()
        gradient_step(plain, x, labels)
        pairs = zip(training.parameters(), plain.parameters(), strict=True)
        same_gradients.append(all(_same(one.grad, other.grad) for one, other in pairs))
    return {"inference": all(same_logits), "training step": all(same_gradients)}


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
    gradient_step(model, x, labels)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(100_000_000)
    with torch.cuda.stream(torch.cuda.Stream()):
        gradient_step(other, x.clone(), labels)
    torch.cuda.synchronize(device)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(_same(one.grad, another.grad) for one, another in pairs)


@contextmanager
def _beside() -> Iterator[None]:
    """On a stream of its own, between the default stream's work before and after."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _model(device: torch.device, tiny: bool) -> tuple[SepTr, list[Tensor]]:
    """The default model in bfloat16 on Triton, and three batches of spectrograms."""
    config: dict[str, Any] = TINY if tiny else {}
    model = SepTr(**config, backend="triton").to(device, torch.bfloat16)
    size = config.get("input_size", (128, 128))
    return model, [torch.randn(2, 1, *size, device=device, dtype=torch.bfloat16) for _ in range(3)]


def summary(results: dict[str, Any]) -> str:
    """To read."""
    replayed = results["replay"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in replayed["counts"].items())
    failed = [f"  {entry['test']}: {entry['reason'].splitlines()[-1]}" for entry in replayed["failures"]]
    lines = [f"tests: {counts or 'none'}", *failed, *(f"  {text}" for text in replayed["unfinished"])]
    lines += [f"{entry['different']} of {entry['runs']} runs differ: {entry['pass']}" for entry in results["repeat"]]
    for name, right in {**results.get("graphs", {}), "another stream": results.get("stream")}.items():
        if right is not None:
            lines.append(f"{name}: {'the same bits' if right else 'OTHER BITS'}")
    return "\n".join(lines)
