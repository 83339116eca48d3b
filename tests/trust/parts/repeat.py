"""The same bits in every run: forward, backward and five steps of an optimizer, on both backends."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from septr_fast.kernels import launch
from support.compare import gradients
from support.judging import Results
from support.kernels.pass_cases import TILES
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.measuring.timing import threads
from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from trust.outcome import Outcome, Progress
from trust.parts.isolation import LARGE, TINY

NAME = "repeat"
WHAT = (
    "Models of different plans, built anew from the same seed, give the same bits again: logits, every gradient and "
    "every parameter after five steps of AdamW, with one thread and, on PyTorch, with two, also under "
    "torch.use_deterministic_algorithms(True) and in another process (logits and gradients)."
)
CANNOT = (
    "More than two threads; a repetition with another number of threads than before, on another processor or with "
    "another PyTorch, which may round otherwise."
)

STEPS = 5
FORMULATIONS = (None, "direct", "merged", "low-rank", "class-only")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Setting:
    """A model, by values that another process can be given.

    Attributes:
        config: name of the model's sizes.
        backend: "torch" or "triton".
        formulation: of every transformer that takes it; None for the plan's.
        dtype: name of the dtype.
        recompute: whether the backward pass recomputes.
        dropout: probability; its draws are repeated too.
        threads: of PyTorch.
    """

    config: str
    backend: str
    formulation: str | None
    dtype: str
    recompute: bool = False
    dropout: float = 0.0
    threads: int = 1


CONFIGS: dict[str, dict[str, Any]] = {
    "pooled": SMALL["uneven pooling"],
    "wide": SMALL["wide"],
    "large": LARGE,
    "tiny": TINY,
}


def settings(full: bool) -> Iterator[Setting]:
    """All models; in the short form one on Triton, in the long one every dtype of the plan's formulation there.

    A formulation that leads to the plan of one before it is left out.
    """
    seen = set()
    for setting in _settings(full):
        model, _ = built(setting)
        key = (replace(setting, formulation=None), tuple(step.formulation for step in model.plan().steps))
        if key not in seen:
            seen.add(key)
            yield setting


def _settings(full: bool) -> Iterator[Setting]:
    for config in ("pooled", "wide", "large"):
        for formulation in FORMULATIONS:
            for dtype in DTYPES if full else ("float32", "bfloat16"):
                yield Setting(config, "torch", formulation, dtype)
    yield Setting("wide", "torch", None, "float32", recompute=True)
    yield Setting("wide", "torch", None, "float32", dropout=0.3)
    yield Setting("wide", "torch", None, "float32", recompute=True, dropout=0.3)
    yield from _on_two_threads(full)
    for dtype in ("float32", "bfloat16", "float16") if full else ("float32",):
        yield Setting("tiny", "triton", None, dtype)
    for formulation in FORMULATIONS[1:] if full else ():
        yield Setting("tiny", "triton", formulation, "float32")


def _on_two_threads(full: bool) -> Iterator[Setting]:
    """Of the largest model, which alone is worth two threads to PyTorch."""
    for formulation in FORMULATIONS if full else (None,):
        yield Setting("large", "torch", formulation, "float32", threads=2)
    for dtype in list(DTYPES)[1:] if full else ():
        yield Setting("large", "torch", None, dtype, threads=2)
    if full:
        yield Setting("large", "torch", None, "float32", recompute=True, threads=2)
        yield Setting("large", "torch", None, "float32", dropout=0.3, threads=2)


def built(setting: Setting) -> tuple[SepTr, Tensor]:
    """A new model, and two spectrograms."""
    torch.manual_seed(11)
    options = {"dropout_tr": setting.dropout, "formulation": setting.formulation, "backend": setting.backend}
    model = SepTr(**CONFIGS[setting.config], **options).to(DTYPES[setting.dtype])
    model.set_grad_checkpointing(setting.recompute)
    x = torch.randn(2, model.blocks[0].channels, *model.blocks[0].input_size)
    return model, x.to(DTYPES[setting.dtype])


def forward_and_backward(setting: Setting) -> Results:
    """Logits in evaluation, and logits and gradients in training."""
    model, x = built(setting)
    with launch.override(TILES), threads(setting.threads):
        with torch.no_grad():
            evaluated = model.eval()(x)
        return {"logits in evaluation": evaluated, **gradients(model.train(), x)}


def trained(setting: Setting) -> Results:
    """Every parameter after some steps of an optimizer."""
    model, x = built(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with launch.override(TILES), threads(setting.threads):
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(model(x), torch.tensor([0, 1])).backward()
            optimizer.step()
    return {name: x.detach() for name, x in model.named_parameters()}


def different(found: Results, expected: Results) -> list[str]:
    """Names of what differs in a bit, NaN being equal to itself."""
    return [name for name in expected if digest({name: found[name]}) != digest({name: expected[name]})]


def digest(results: Results) -> str:
    """Of all bits."""
    found = hashlib.sha256()
    for name, x in results.items():
        found.update(name.encode())
        found.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch refuses what may differ from run to run, and fills new memory."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def depends_on_threads(setting: Setting) -> bool:
    """Whether one thread gives other bits: then several take part."""
    one = replace(setting, threads=1)
    return digest(forward_and_backward(setting)) != digest(forward_and_backward(one))


def repeats(setting: Setting, results: Callable[[Setting], Results]) -> list[str]:
    """What is wrong with a second run, and with a third under deterministic algorithms."""
    first, second = results(setting), results(setting)
    with deterministic():
        third = results(setting)
    runs = {"again": second, "under deterministic algorithms": third}
    found = {run: different(each, first) for run, each in runs.items()}
    return [f"{setting}: other bits {run}: {', '.join(names)}" for run, names in found.items() if names]


def elsewhere(all_settings: list[Setting]) -> list[str]:
    """Digests from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.map(_digest_elsewhere, all_settings)


def _digest_elsewhere(setting: Setting) -> str:
    from trust.runner import prepare

    prepare()
    return digest(forward_and_backward(setting))


def run(full: bool, progress: Progress) -> Outcome:
    """See `trust`."""
    wrong: list[str] = []
    tried = {"forward and backward": 0, f"{STEPS} steps of AdamW": 0, "in another process": 0}
    chosen = list(settings(full))
    for setting in chosen:
        for name, results in zip(tried, (forward_and_backward, trained), strict=False):
            if results is trained and setting.backend == "triton" and not full:
                continue
            wrong += repeats(setting, results)
            tried[name] += 2
            progress(2)
    if full:
        for setting, found in zip(chosen, elsewhere(chosen), strict=True):
            tried["in another process"] += 1
            progress(1)
            if found != digest(forward_and_backward(setting)):
                wrong.append(f"{setting}: other bits in another process")
    on_two = [setting for setting in chosen if setting.threads == 2]
    figures = {
        "repetitions": tried,
        "models": len(chosen),
        "of these with 2 threads": len(on_two),
        "of these with other bits than with 1 thread": sum(map(depends_on_threads, on_two)),
    }
    return Outcome(sum(tried.values()), wrong, figures)
