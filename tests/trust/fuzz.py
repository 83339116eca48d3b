"""Fuzzing with hypothesis: drawn operators, passes and models, forward and backward, against float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from trust.fuzz_cases import (
    ATTENTION_FORMS,
    AXES,
    FORMULATIONS,
    KERNEL_DTYPES,
    OPERATORS,
    SCALES,
    Case,
    models,
    operators,
    passes,
)
from trust.fuzz_models import check_model, check_torch_pass
from trust.fuzz_operators import check_operator, check_triton_pass
from trust.judging import DRAWS
from trust.outcome import Outcome, Progress

NAME = "fuzz"
WHAT = (
    "Operators, passes and whole models in drawn shapes, strides, dtypes, scales and formulations, on PyTorch and on "
    "Triton, forward and backward, against plain PyTorch in the same dtype and float64."
)
CANNOT = (
    "Faults that show in larger shapes alone, or on values that a normal distribution seldom draws, or that are as "
    "small as rounding."
)

BLOCK = 100
"""Cases from one seed in the long form."""


@dataclass(frozen=True)
class Level:
    """Cases of one kind.

    Attributes:
        strategy: draws one.
        check: raises where it is wrong; whether it took more than one draw of values.
        short: cases in the short form.
        long: cases in the long form.
    """

    strategy: SearchStrategy[Any]
    check: Callable[[Any], bool]
    short: int
    long: int


LEVELS = {
    "operators on Triton": Level(operators(), check_operator, 66, 500),
    "passes on Triton": Level(passes("triton"), check_triton_pass, 22, 400),
    "models on Triton": Level(models("triton"), check_model, 4, 100),
    "passes on PyTorch": Level(passes("torch"), check_torch_pass, 100, 500),
    "models on PyTorch": Level(models("torch"), check_model, 112, 600),
}

LAYOUT_NAMES = ("contiguous", "transposed", "sliced", "expanded")
CATEGORIES = (
    *("length 1", "prime length", "tile edge - 1", "tile edge", "tile edge + 1", "empty batch"),
    *("single head", "single head without a projection", "one channel", "many channels"),
    *("pooling that divides", "pooling that does not divide", "torch", "triton", "float64", *KERNEL_DTYPES),
    *(f"float32 tokens, {name} products" for name in ("float16", "bfloat16")),
    *(f"scale {scale:g}" for scale in SCALES),
    *(f"{name} inputs" for name in LAYOUT_NAMES),
    *(f"{name} gradients" for name in LAYOUT_NAMES),
    *(f"operator {name}" for name in OPERATORS),
    *(f"attention {name}" for name in ATTENTION_FORMS),
    *(f"pass {name}" for name in FORMULATIONS),
    *(f"formulation {name}" for name in (*FORMULATIONS, "planned")),
    *(f"along the {axis}" for axis in AXES),
    *(f"first along the {axis}" for axis in AXES),
    *(f"model padded along the {axis}" for axis in AXES),
    *("padded along a sequence", "padded across the sequences", "recomputation", "model"),
)
"""Each has to be reached."""


def search(level: Level, number: int, count: int, seen: Counter[Case], progress: Progress) -> tuple[int, str | None]:
    """Check cases of a level drawn from one seed.

    Args:
        level: of the cases.
        number: the seed.
        count: cases to draw.
        seen: every case that was checked, added to.
        progress: told of each.

    Returns:
        How many cases took more than one draw of values, and the smallest case that is wrong with the reason.
    """
    more, last = 0, None

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(level.strategy)
    def check(case: Case) -> None:
        nonlocal more, last
        last = case
        seen[case] += 1
        progress(1)
        more += level.check(case)

    try:
        check()
    except Exception as error:
        return more, f"{last}, seed {number}: {type(error).__name__}: {error}"
    return more, None


def blocks(level: Level, full: bool) -> Iterator[tuple[int, int]]:
    """Seeds, and how many cases are drawn from each."""
    if not full:
        yield 0, level.short
        return
    for number, begin in enumerate(range(0, level.long, BLOCK), start=1):
        yield number, min(BLOCK, level.long - begin)


def run(full: bool, progress: Progress) -> Outcome:
    """See `trust`."""
    wrong: list[str] = []
    reached: Counter[str] = Counter()
    tried: dict[str, int] = {}
    again = 0
    for name, level in LEVELS.items():
        seen: Counter[Case] = Counter()
        for number, count in blocks(level, full):
            more, fault = search(level, number, count, seen, progress)
            again += more
            wrong += [] if fault is None else [f"{name}: {fault}"]
        tried[name] = len(seen)
        reached.update(category for case in seen for category in set(case.categories()))
    wrong += [f"category never reached: {category}" for category in CATEGORIES if not reached[category]]
    figures = {
        f"judged on {DRAWS} more draws": again,
        "cases": tried,
        "cases in each category": {category: reached[category] for category in CATEGORIES},
    }
    return Outcome(sum(tried.values()), wrong, figures)
