"""How time and memory grow along an axis: power laws fitted to measured points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from septr_fast.report.results import Result, Run

GROWTH = "growth: "
"""How the names of the groups begin whose results are points of a curve."""


@dataclass(frozen=True)
class PowerLaw:
    """`value = factor * at ** exponent`.

    Attributes:
        factor: the value at 1.
        exponent: 1 for what grows in proportion, 2 for what grows with the square.
        points: how many it was fitted to.
        deviation: the largest distance of a point from the line, as a share of the line.
    """

    factor: float
    exponent: float
    points: int
    deviation: float

    def __call__(self, at: float) -> float:
        """The value on the line."""
        return self.factor * at**self.exponent


@dataclass(frozen=True)
class Curve:
    """What one model takes along one axis.

    Attributes:
        axis: "height", "width", "depth" or "batch".
        model: in words, with the precision where a group has several.
        measured: the results, by their place on the axis.
    """

    axis: str
    model: str
    measured: Sequence[Result]

    @property
    def seconds(self) -> list[tuple[float, float]]:
        """Places with median times."""
        return [(result.at, result.seconds) for result in self.measured if result.at is not None]

    @property
    def peak_bytes(self) -> list[tuple[float, float]]:
        """Places with peak memory, where it is known."""
        points = ((result.at, result.peak_bytes) for result in self.measured)
        return [(at, float(peak)) for at, peak in points if at is not None and peak]


def fit(points: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """Least squares in the logarithms of places and values, all above 0; None for fewer than two places."""
    if len({at for at, _ in points}) < 2:
        return None
    places, values = ([math.log(number) for number in column] for column in zip(*points, strict=True))
    exponent, intercept = statistics.linear_regression(places, values)
    law = PowerLaw(math.exp(intercept), exponent, len(points), 0.0)
    deviation = max(abs(value / law(at) - 1) for at, value in points)
    return PowerLaw(law.factor, law.exponent, law.points, deviation)


def curves(run: Run) -> list[Curve]:
    """The curves of `run`, axis by axis, in the order of the results."""
    found: dict[tuple[str, str], list[Result]] = {}
    grown = [result for result in run.results if result.group.startswith(GROWTH) and result.at]
    precisions = {(result.group, result.precision) for result in grown}
    several = {group for group, _ in precisions if sum(other == group for other, _ in precisions) > 1}
    for result in grown:
        name = f"{result.model}, {result.precision}" if result.group in several else result.model
        found.setdefault((result.group.removeprefix(GROWTH), name), []).append(result)
    axes = dict.fromkeys(axis for axis, _ in found)
    return [
        Curve(axis, model, sorted(results, key=lambda result: result.at or 0.0))
        for axis in axes
        for (own_axis, model), results in found.items()
        if own_axis == axis
    ]
