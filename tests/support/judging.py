"""Whether results are as good as plain PyTorch's, on more draws of their operands where one falls short by little.

The mean error of a few values is as much a matter of chance as of the code, and so is the largest error where one
draw of the operands is far harder than the others. Plain PyTorch's own errors, which set the limits, differ from
processor to processor. So a case that falls short by little is judged again, on many other draws of its operands
and on still more: the errors of all draws, added up, against what they are allowed, added up. Chance goes, a fault
stays. The largest error of all draws together would be one number of the hardest draw, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from support.compare import relative_error
from support.tolerance import (
    Results,
    ShortfallError,
    Triple,
    errors_and_limits,
    kept_comparisons,
    share_of_allowed,
    sizes_of_few,
    with_few_joined,
)
from torch import Tensor

Measure = Callable[[Tensor, Tensor, Tensor], dict[str, tuple[float, float]]]
"""Errors of a result by their kind, each with what is allowed."""

AGAIN = ((8, 30.0), (64, 3.0))
"""Draws together on which a case is judged again, in turn, and how many times what is allowed is no chance any more."""
FIRST_SEED = 20221107
"""Of every test."""
EXACT = 1e-9
"""Relative error allowed in float64."""


class FaultError(AssertionError):
    """A result is not as good as plain PyTorch's."""


by_rule: Measure = errors_and_limits
"""By the rule of `tolerance.shortfall`."""


def by_norm(result: Tensor, plain: Tensor, oracle: Tensor) -> dict[str, tuple[float, float]]:
    """By the norm of all errors: at most twice plain PyTorch's, plus one rounding of every value."""
    error, plain_error = ((x.detach().double() - oracle).norm().item() for x in (result, plain))
    return {"norm": (error, 2 * plain_error + torch.finfo(result.dtype).eps * oracle.norm().item())}


def in_float64(result: Tensor, plain: Tensor, oracle: Tensor) -> dict[str, tuple[float, float]]:
    """By the relative error alone, `EXACT` being allowed."""
    return {"relative": (relative_error(result, oracle), EXACT)}


def judge(draw: Callable[[int], Triple], seed: int, measure: Measure = by_rule) -> bool:
    """Raise `FaultError` where results fall short.

    Args:
        draw: results from operands drawn by a seed.
        seed: of the first draw.
        measure: how many times an error is what is allowed.

    Returns:
        Whether more draws than one were needed.
    """
    share, where = worst([draw(seed)], measure)
    if share <= 1:
        return False
    _judge_again(lambda draws: [[draw(x) for x in _seeds(seed, draws)]], share, where, measure)
    return True


def judge_test(run: Callable[[], object], fallen_short: ShortfallError) -> None:
    """Run a test on more draws of what it draws with PyTorch, and raise `FaultError` where it falls short on them too.

    Args:
        run: the test.
        fallen_short: what it raised.
    """

    def kept(seed: int) -> list[Triple]:
        torch.manual_seed(seed)
        with kept_comparisons() as found:
            run()
        return found

    def draw(draws: int) -> list[tuple[Triple, ...]]:
        return list(zip(*map(kept, _seeds(0, draws)), strict=True))

    _judge_again(draw, fallen_short.share, str(fallen_short), by_rule)


def _seeds(first: int, draws: int) -> range:
    return range(1000 * first + 1, 1000 * first + 1 + draws)


def _judge_again(draw: Callable[[int], Sequence[Sequence[Triple]]], share: float, where: str, measure: Measure) -> None:
    """Judge each of several comparisons on many draws."""
    for draws, chance in AGAIN:
        if share <= chance:
            share, where = max(worst(triples, measure) for triples in draw(draws))
        if share <= 1:
            return
    raise FaultError(f"{where}: {share:.3g} times the error that is allowed")


def farther(plains: Sequence[Results], oracle: Results) -> Results:
    """Of each tensor that one of `plains` which is farther from float64.

    A rounding in an early transformer reaches all values of a later one: two models in plain PyTorch may differ by
    a fifth in a tensor's mean error.
    """
    return {
        name: max((plain[name] for plain in plains), key=lambda x, name=name: _summed_error(x, oracle[name]))
        for name in oracle
    }


def _summed_error(x: Tensor, oracle: Tensor) -> float:
    return (x.double() - oracle).abs().sum().item()


def worst(draws: Sequence[Triple], measure: Measure) -> tuple[float, str]:
    """How many times its error the worst result has what is allowed, both added up over `draws`, and its name.

    Few values are those of all draws together, and are brought to a common size by the largest in any: a gradient that
    all but vanishes in one draw counts for little.

    Raises:
        FaultError: where names, shapes or dtypes are not those of plain PyTorch.
    """
    for triple in draws:
        _check_alike(*triple)
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    sizes = sizes_of_few(joined(draws)[2])
    for triple in draws:
        grouped = with_few_joined(*triple, sizes)
        for name in grouped[2]:
            for kind, (error, limit) in measure(*(group[name] for group in grouped)).items():
                errors, limits = sums.get((name, kind), (0.0, 0.0))
                sums[name, kind] = errors + error, limits + limit
    return max(((share_of_allowed(*both), name) for (name, _), both in sums.items()), default=(0.0, "nothing"))


def _check_alike(results: Results, plain: Results, oracle: Results) -> None:
    if not results.keys() == plain.keys() == oracle.keys():
        raise FaultError(f"results {sorted(results)}, expected {sorted(oracle)}")
    for name, wanted in oracle.items():
        if results[name].shape != wanted.shape or results[name].dtype != plain[name].dtype:
            raise FaultError(f"{name}: {tuple(results[name].shape)}, expected {tuple(wanted.shape)}")


def joined(triples: Sequence[Triple]) -> Triple:
    """Several draws as one: values of the same name behind one another."""
    first, second, third = (
        {name: torch.cat([group[name].flatten() for group in groups]) for name in groups[0]}
        for groups in zip(*triples, strict=True)
    )
    return first, second, third
