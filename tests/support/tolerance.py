"""When a kernel's result is as good as plain PyTorch's in the same dtype, measured against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Results = dict[str, Tensor]
Triple = tuple[Results, Results, Results]
"""Results in question, plain PyTorch's in the same dtype, and in float64."""

FEW = 256
"""A tensor of fewer values is compared together with others: its mean error says little."""

_kept: list[Triple] | None = None


class ShortfallError(AssertionError):
    """A result is not as good as plain PyTorch's.

    Args:
        reason: which, and by how much.
        share: how many times the error that is allowed.
    """

    def __init__(self, reason: str, share: float) -> None:
        super().__init__(reason)
        self.share = share


@contextmanager
def kept_comparisons() -> Iterator[list[Triple]]:
    """What is compared inside, for `judging`: it is kept and not judged."""
    global _kept
    before, _kept = _kept, []
    try:
        yield _kept
    finally:
        _kept = before


def last_place(value: float, dtype: torch.dtype) -> float:
    """One unit in the last place of `value` in `dtype`."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** math.floor(math.log2(max(abs(value), info.tiny)))


def errors_and_limits(result: Tensor, plain: Tensor, oracle: Tensor) -> dict[str, tuple[float, float]]:
    """The largest and the mean error of `result`, each with what `plain` allows it; see `shortfall`.

    Errors that are not finite count as infinite.
    """
    assert result.shape == plain.shape == oracle.shape, (result.shape, plain.shape, oracle.shape)
    assert result.dtype == plain.dtype, (result.dtype, plain.dtype)
    assert oracle.dtype == torch.float64
    if oracle.numel() == 0:
        return {}
    error, plain_error = (x.detach().double().cpu().sub(oracle.detach().cpu()).abs() for x in (result, plain))
    unit = last_place(oracle.abs().max().item(), result.dtype)
    mean_factor = 2.0 if result.dtype == torch.float32 else 1.1
    largest, mean = error.max().nan_to_num(math.inf).item(), error.mean().nan_to_num(math.inf).item()
    return {
        "largest": (largest, 2 * plain_error.max().item() + unit),
        "mean": (mean, mean_factor * plain_error.mean().item() + unit / 32),
    }


def share_of_allowed(error: float, limit: float) -> float:
    """How many times `limit` an error is."""
    if not math.isfinite(error):
        return math.inf
    return error / limit if limit > 0 else math.inf if error > 0 else 0.0


def shortfall(result: Tensor, plain: Tensor, oracle: Tensor) -> tuple[str, float]:
    """What makes `result` worse than `plain` allows, or nothing, and how many times its error is what is allowed.

    The largest error may be twice that of `plain`, the mean error 1.1 times (in float32 twice), each
    plus rounding: one unit in the last place of the largest value of `oracle`, a 32nd of it for the mean.

    Args:
        result: what a kernel gave, in its dtype.
        plain: what plain PyTorch gives in the same dtype.
        oracle: float64.
    """
    found = errors_and_limits(result, plain, oracle)
    share = max((share_of_allowed(*each) for each in found.values()), default=0.0)
    if share == math.inf:
        return f"{int((~torch.isfinite(result)).sum())} of {result.numel()} values are not finite", share
    worse = [
        f"{name} error {error:.3g}, allowed {limit:.3g}" for name, (error, limit) in found.items() if error > limit
    ]
    return "; ".join(worse), share


def assert_as_good(results: Results, plain: Results, oracle: Results) -> None:
    """Compare results and gradients by name; see `shortfall`.

    Raises:
        ShortfallError: where one falls short. A test that draws its operands is then judged on more draws: see
            `judging`.
    """
    assert results.keys() == plain.keys() == oracle.keys()
    if _kept is not None:
        _kept.append((results, plain, oracle))
        return
    found = {name: shortfall(results[name], plain[name], oracle[name]) for name in results}
    share = max((share for _, share in found.values()), default=0.0)
    if share > 1:
        raise ShortfallError("\n".join(f"{name}: {reason}" for name, (reason, _) in found.items() if reason), share)


def assert_all_as_good(results: Results, plain: Results, oracle: Results) -> None:
    """`assert_as_good`, with tensors of few values joined to one for each dtype; see `with_few_joined`."""
    assert_as_good(*with_few_joined(results, plain, oracle))


def sizes_of_few(oracle: Results) -> dict[str, float]:
    """Of each tensor of fewer than `FEW` values, not all zero, the power of two below its largest."""
    largest = {name: x.abs().max().item() for name, x in oracle.items() if 0 < x.numel() < FEW}
    return {name: 2.0 ** math.floor(math.log2(value)) for name, value in largest.items() if value}


def with_few_joined(
    results: Results, plain: Results, oracle: Results, sizes: Mapping[str, float] | None = None
) -> Triple:
    """The three, with tensors of few values joined to one for each dtype.

    A bias of two dozen values has two dozen errors, whose mean is as much a matter of chance as of the
    kernel. So what has fewer than `FEW` values is brought to a common size by a power of two, which rounds
    nothing, and compared together.

    Args:
        results: in question.
        plain: plain PyTorch's.
        oracle: in float64.
        sizes: what to join, each with what to divide it by; by default what `sizes_of_few` says of `oracle`.
    """
    sizes = sizes_of_few(oracle) if sizes is None else sizes
    few: tuple[dict[str, list[Tensor]], ...] = ({}, {}, {})
    many: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    for name in oracle:
        for index, values in enumerate((results, plain, oracle)):
            if name in sizes:
                joined = few[index].setdefault(f"few values in {results[name].dtype}", [])
                joined.append(values[name].flatten() / sizes[name])
            else:
                many[index][name] = values[name]
    together = ({name: torch.cat(parts) for name, parts in group.items()} for group in few)
    first, second, third = ({**one, **two} for one, two in zip(many, together, strict=True))
    return first, second, third
