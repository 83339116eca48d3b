"""Errors against float64 beside those of plain PyTorch in the same dtype, of every operator, result and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from septr_fast.kernels import launch
from support.compare import gradients, pair, spectrograms
from support.judging import AGAIN, FaultError, Measure, Triple, by_rule, joined, judge
from support.kernels.pass_cases import TILES
from support.tolerance import FEW

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from trust.fuzzing.cases import FORMULATIONS, MIXED, OPERATORS, OperatorCase, PassCase
from trust.fuzzing.operators import operator_triple, pass_triple
from trust.life.curves import train_beside_the_reference
from trust.outcome import Outcome, Progress

NAME = "accuracy"
WHAT = (
    "Errors of every operator's and pass's results and gradients on Triton, and of models on PyTorch in every plan of "
    "their own, against float64, over those of plain PyTorch in the same dtype; a small model trained beside the "
    "reference. The first table has the rule. It judges each case's draws together, and tensors of fewer than "
    f"{FEW} values of one dtype, brought to a common size, as one: the mean error of few values is a matter of chance. "
    f"A case that errs at most {AGAIN[0][1]:g} times what is allowed is judged again on {AGAIN[0][0]} other draws "
    f"together, and where these err at most {AGAIN[1][1]:g} times what is allowed, on {AGAIN[1][0]}: the last verdict "
    "counts."
)
CANNOT = (
    "Whether a GPU's tensor cores and approximate exponentials err as the interpreter does. A single tensor of few "
    "values that errs more than plain PyTorch's, as ratios above the limits in the last table show, where those that "
    "are judged with it err less."
)

RULES: dict[str, dict[str, str]] = {
    by_rule.__name__: {
        "largest error, limit": "2 times plain PyTorch's, plus one unit in the last place of the largest value",
        "mean error, limit": "1.1 times plain PyTorch's, in float32 2 times, plus a 32nd of that unit",
    },
}
"""What each measure allows, in words."""

SCALES = (0.1, 1.0, 3.0, 8.0)
DRAWS = 3
"""At each scale in the long form."""
SHAPE = (2, 2, 19)
MODELS = ("square", "many channels", "single full head", "uneven pooling")
MODEL_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def operator_case(operator: str, dtypes: tuple[str, str], scale: float) -> OperatorCase:
    """An operator in a shape that fills no tile."""
    return OperatorCase(
        operator=operator,
        form="direct" if operator == "axis_attention" else "",
        axis="width",
        shape=SHAPE,
        dim=24,
        heads=3,
        hidden=40,
        dtypes=dtypes,
        scale=scale,
        layout="contiguous",
        gradient_layout="contiguous",
        seed=0,
    )


def pass_case(formulation: str, dtypes: tuple[str, str], scale: float) -> PassCase:
    """A pass on Triton in a shape that fills no tile."""
    return PassCase(
        formulation=formulation,
        backend="triton",
        axis="width",
        shape=SHAPE,
        heads=2,
        dim_head=12,
        dim=24,
        mlp_dim=40,
        channels=2,
        dtypes=dtypes,
        scale=scale,
        layout="contiguous",
        gradient_layout="contiguous",
        padded=None,
        seed=0,
    )


def model_triple(name: str, dtype: torch.dtype, formulation: str | None, seed: int) -> Triple:
    """A model on PyTorch, the reference in the same dtype, and in float64."""
    torch.manual_seed(seed)
    expected, model = pair(SMALL[name], torch.float32, formulation=formulation)
    expected, model = expected.to(dtype), model.to(dtype)
    x = spectrograms(SMALL[name], batch=4, dtype=torch.float32).to(dtype)
    found, plain = gradients(model, x), gradients(expected, x)
    return found, plain, gradients(expected.double(), x.double())


def sources(full: bool) -> Iterator[tuple[str, str, list[Callable[[int], Triple]], Measure]]:
    """What is measured, its dtype, what draws its results by a seed, and the rule that it is held to."""
    scales = SCALES if full else (1.0,)
    for of in MIXED if full else MIXED[:1]:
        dtype = of[0] if of[0] == of[1] else f"{of[0]}, products {of[1]}"
        for name in OPERATORS:
            if name == "axis_attention" and of[0] != of[1]:
                continue
            cases = [operator_case(name, of, scale) for scale in scales]
            draws = [lambda seed, case=case: operator_triple(case, seed) for case in cases]
            yield f"operator {name}", dtype, draws, by_rule
        for formulation in FORMULATIONS:
            passes = [pass_case(formulation, of, scale) for scale in scales]
            draws = [lambda seed, case=case: pass_triple(case, seed) for case in passes]
            yield f"pass {formulation}", dtype, draws, by_rule
    for dtype, kind in MODEL_DTYPES.items():
        for formulation, names in plans(full).items():
            draws = [
                lambda seed, name=name, kind=kind, of=formulation: model_triple(name, kind, of, seed) for name in names
            ]
            yield f"model {formulation or 'planned'}, on PyTorch", dtype, draws, by_rule


def plans(full: bool) -> dict[str | None, list[str]]:
    """The models of every formulation asked for; those left out whose plan another formulation has brought."""
    seen: set[tuple[str, ...]] = set()
    found: dict[str | None, list[str]] = {}
    for formulation in (None, *FORMULATIONS) if full else (None,):
        for name in MODELS:
            plan = (name, *(step.formulation for step in SepTr(**SMALL[name], formulation=formulation).plan().steps))
            if plan not in seen:
                found.setdefault(formulation, []).append(name)
            seen.add(plan)
    return found


def ratios(triple: Triple) -> dict[str, tuple[float, float]]:
    """Of each result the largest and the mean error, over those of plain PyTorch; none where that is exact."""
    found = {}
    results, plain, oracle = triple
    for name, exact in oracle.items():
        ours, theirs = ((x[name].detach().double() - exact).abs() for x in (results, plain))
        if exact.numel() and theirs.max() > 0:
            found[name] = ((ours.max() / theirs.max()).item(), (ours.mean() / theirs.mean()).item())
    return found


def result_name(of: str, name: str) -> str:
    """The name of a result; parameters of a model are summed up by their kind."""
    return name.rsplit(".", 1)[-1] if of.startswith("model") else name


def measured(full: bool, progress: Progress) -> tuple[int, list[dict[str, Any]], list[str]]:
    """How many results were measured, a row for each by name and dtype, and what falls short of its rule."""
    tried, rows, wrong = 0, [], []
    for of, dtype, draws, measure in sources(full):
        found: dict[str, list[tuple[float, float]]] = {}
        for draw in draws:
            triples = [draw(seed) for seed in range(DRAWS if full else 1)]
            for triple in triples:
                progress(len(triple[2]))
                tried += len(triple[2])
                for name, pair_of_ratios in ratios(triple).items():
                    found.setdefault(result_name(of, name), []).append(pair_of_ratios)
            try:
                judge(lambda seed, draw=draw, drawn=triples: draw(seed) if seed else joined(drawn), 0, measure)
            except FaultError as fault:
                wrong.append(f"{of}, {dtype}: {fault}")
        rows += [row(of, dtype, name, pairs, measure) for name, pairs in found.items()]
    return tried, rows, wrong


def row(of: str, dtype: str, name: str, pairs: list[tuple[float, float]], measure: Measure) -> dict[str, Any]:
    """A line of the page's table."""
    largest, mean = zip(*pairs, strict=True)
    return {
        "of": of,
        "dtype": dtype,
        "result or gradient": name,
        "largest error, worst ratio": max(largest),
        "mean error, worst ratio": max(mean),
        "mean error, mean ratio": math.fsum(mean) / len(mean),
        "rule": measure.__name__.replace("_", " "),
    }


def run(full: bool, progress: Progress) -> Outcome:
    """See `trust`."""
    with launch.override(TILES):
        tried, rows, wrong = measured(full, progress)
    steps = 200 if full else 20
    curves, apart = train_beside_the_reference(steps, progress)
    figures = {
        "rules": [{"rule": name.replace("_", " "), **limits} for name, limits in RULES.items()],
        f"training, {steps} steps, distance of loss curves": curves,
        "errors over plain PyTorch's, of every draw alone": rows,
    }
    return Outcome(tried + len(curves), wrong + apart, figures)
