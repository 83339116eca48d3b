"""Fuzzing with hypothesis: drawn operators, passes and models, forward and backward, against float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from trust.fuzzing.cases import ATTENTION_FORMS, AXES, FORMULATIONS, KERNEL_DTYPES, OPERATORS, SCALES, Case
from trust.fuzzing.chunks import KINDS, counted, never
from trust.fuzzing.draws import merged_in_chunks, models, operators, passes
from trust.fuzzing.models import check_model, check_torch_pass
from trust.fuzzing.operators import check_operator, check_triton_pass
from trust.outcome import Outcome, Progress

NAME = "fuzz"
WHAT = (
    "Operators, passes and whole models in drawn shapes, strides, dtypes, scales and formulations, on Triton and, in "
    "drawn chunks of rows, on PyTorch, forward and backward, against plain PyTorch in the same dtype and float64."
)
CANNOT = (
    "Faults that show in larger shapes alone, or on values that a normal distribution seldom draws, or that are as "
    "small as rounding: models on PyTorch may err twice as much as the reference, by the norm of all errors, and one "
    "rounding of every value besides; all else is held to the rule of the part on accuracy, in float64 to 1e-9."
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
    "merged training passes in chunks": Level(merged_in_chunks(), check_torch_pass, 30, 300),
    "models on PyTorch": Level(models("torch"), check_model, 112, 600),
}

LAYOUT_NAMES = ("contiguous", "transposed", "sliced", "expanded")
CATEGORIES = {
    "operators on Triton": (
        *("length 1", "prime length", "tile edge - 1", "tile edge", "tile edge + 1", "empty batch", "single head"),
        *("triton", *KERNEL_DTYPES, *(f"float32 tokens, {name} products" for name in ("float16", "bfloat16"))),
        *(f"scale {scale:g}" for scale in SCALES),
        *(f"{name} inputs" for name in LAYOUT_NAMES),
        *(f"{name} gradients" for name in LAYOUT_NAMES),
        *(f"operator {name}" for name in OPERATORS),
        *(f"attention {name}" for name in ATTENTION_FORMS),
        *(f"along the {axis}" for axis in AXES),
    ),
    "passes on PyTorch": (
        *("torch", "float64", "single head without a projection", "one channel", "many channels"),
        *(f"pass {name}" for name in FORMULATIONS),
        *("padded along a sequence", "padded across the sequences"),
    ),
    "models on PyTorch": (
        *("model", "pooling that divides", "pooling that does not divide", "recomputation"),
        *(f"formulation {name}" for name in (*FORMULATIONS, "planned")),
        *(f"first along the {axis}" for axis in AXES),
        *(f"model padded along the {axis}" for axis in AXES),
    ),
}
"""Each has to be reached; by level, one whose cases may belong to it."""


def search(
    level: Level, number: int, count: int, seen: Counter[Case], progress: Progress, *, shrinking: bool = True
) -> tuple[int, str | None]:
    """Check cases of a level drawn from one seed.

    Args:
        level: of the cases.
        number: the seed.
        count: cases to draw.
        seen: every case that was checked, added to.
        progress: told of each.
        shrinking: whether a smaller case is looked for where one is wrong.

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
        phases=[Phase.generate, Phase.shrink] if shrinking else [Phase.generate],
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


def sought(level: Level, category: str) -> Level:
    """The level's cases of one category, for what chance does not bring.

    What hypothesis draws from a seed changes with its version, and with the constants in our sources.
    """
    return replace(level, strategy=level.strategy.filter(lambda case: category in case.categories()))


def run(full: bool, progress: Progress) -> Outcome:
    """See `trust`."""
    wrong: list[str] = []
    seen: dict[str, Counter[Case]] = {name: Counter() for name in LEVELS}
    again = 0

    def try_cases(name: str, level: Level, number: int, count: int) -> None:
        nonlocal again, wrong
        more, fault = search(level, number, count, seen[name], progress)
        again += more
        wrong += [] if fault is None else [f"{name}: {fault}"]

    categories = {category: name for name, own in CATEGORIES.items() for category in own}
    with counted() as in_chunks:
        for name, level in LEVELS.items():
            for number, count in blocks(level, full):
                try_cases(name, level, number, count)
        for category, name in categories.items():
            if not count_reached(seen)[category]:
                try_cases(name, sought(LEVELS[name], category), 0, 1)
    reached = count_reached(seen)
    wrong += [f"category never reached: {category}" for category in categories if not reached[category]]
    wrong += never(in_chunks)
    tried = {name: len(cases) for name, cases in seen.items()}
    figures = {
        "judged on more draws than one": again,
        "cases": tried,
        "passes on PyTorch in several chunks of a sample": {kind: in_chunks[kind] for kind in KINDS},
        "cases in each category": {category: reached[category] for category in categories},
    }
    return Outcome(sum(tried.values()), wrong, figures)


def count_reached(seen: dict[str, Counter[Case]]) -> Counter[str]:
    """How many different cases belong to each category."""
    return Counter(category for cases in seen.values() for case in cases for category in set(case.categories()))
