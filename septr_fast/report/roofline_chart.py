"""Kernels under their roofs, drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from septr_fast.report.charts import GREEN, INK, plain, save, tick
from septr_fast.report.results import Kernel, Run
from septr_fast.report.roofline import Roofs, by_case, intensity, measured, roofs, status
from septr_fast.report.units import quantity, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OFFSETS = ((0, 9), (0, -15), (11, -3), (-11, -3), (12, 9), (-12, 9), (12, -15), (-12, -15), (0, 22), (0, -28))
"""Where a number may stand beside its point, in points of 1/72 inch."""

_APART = 11.0
"""How far a number keeps from points and other numbers, in the same unit."""

_MIDDLE = 3.0
"""From a number's lower edge to its middle, in the same unit."""

Numbered = tuple[int, Kernel, float]


def draw(run: Run, case: str, path: Path) -> None:
    """Draw the kernels of `case` that have products to the PNG file `path`: under roofs, where they are known."""
    numbered = [
        (number, kernel, ratio)
        for number, kernel in enumerate(by_case(run)[case], 1)
        if (ratio := intensity(kernel)) is not None
    ]
    above = roofs(run, case)
    if above is None:
        _draw_intensities(numbered, status(run, case), path)
    else:
        _draw_roofline(run, case, numbered, above, path)


def _draw_intensities(numbered: Sequence[Numbered], words: str, path: Path) -> None:
    """Draw FLOP per byte alone, one line for each kernel."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(8.0, 1.3 + 0.27 * len(numbered)), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, _, ratio) in enumerate(numbered):
        axes.plot(ratio, place, marker="o", markerfacecolor="white", color=GREEN, markersize=7)
        axes.annotate(significant(ratio), (ratio, place), (9, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xscale("log")
    lowest, highest = min(ratio for _, _, ratio in numbered), max(ratio for _, _, ratio in numbered)
    axes.set_xlim(lowest / 2, highest * 3)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_yticks(range(len(numbered)), [f"{number}  {kernel.name}" for number, kernel, _ in numbered])
    axes.set_ylim(len(numbered) - 0.4, -0.6)
    axes.set_xlabel("FLOP per byte", fontsize=9, color=INK)
    axes.set_title(words, loc="left", color=INK)
    axes.grid(alpha=0.25, linewidth=0.6)
    plain(axes)
    save(figure, path)


def _draw_roofline(run: Run, case: str, numbered: Sequence[Numbered], above: Roofs, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.0), layout="constrained")
    axes, legend = figure.subplots(1, 2, width_ratios=(3, 1))
    axes.set_xscale("log")
    axes.set_yscale("log")
    places = [(ratio, _rate(run, kernel, ratio, above)) for _, kernel, ratio in numbered]
    _draw_roofs(axes, above, [ratio for ratio, _ in places], [rate for _, rate in places])
    for (_, kernel, _), place in zip(numbered, places, strict=True):
        fill = GREEN if measured(run, kernel) else "white"
        axes.plot(*place, marker="o", color=GREEN, markerfacecolor=fill, markersize=7, linestyle="none", zorder=3)
    axes.set_xlabel("FLOP per byte", fontsize=9, color=INK)
    axes.set_title(status(run, case), loc="left", color=INK)
    axes.yaxis.set_major_formatter(lambda value, place: tick(quantity(value, "FLOP/s")))
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.grid(alpha=0.25, linewidth=0.6)
    plain(axes)
    legend.axis("off")
    legend.text(
        0, 1, _legend(numbered, above), va="top", fontsize=9, linespacing=1.5, color=INK, transform=legend.transAxes
    )
    figure.draw_without_rendering()
    _write_numbers(axes, [str(number) for number, _, _ in numbered], places, figure.dpi / 72)
    save(figure, path)


def _legend(numbered: Sequence[Numbered], above: Roofs) -> str:
    """The kernels' names by number, and what the line is."""
    names = [f"{number:\u2007>2}  {kernel.name}" for number, kernel, _ in numbered]
    copy, product = quantity(above.copy, "B/s"), quantity(above.product, "FLOP/s")
    return "\n".join([*names, "", "the line:", f"copy, {copy}", f"product in {above.precision}, {product}"])


def _rate(run: Run, kernel: Kernel, ratio: float, above: Roofs) -> float:
    """FLOP per second, measured; where it was not, what the roofs allow."""
    if kernel.seconds is not None and measured(run, kernel):
        return kernel.flops / kernel.seconds
    return above.rate(ratio)


def _draw_roofs(axes: Axes, above: Roofs, ratios: Sequence[float], rates: Sequence[float]) -> None:
    ridge = above.product / above.copy
    left, right = min([*ratios, ridge]) / 3, max([*ratios, ridge]) * 4
    axes.plot([left, ridge, right], [above.rate(left), above.product, above.product], color=INK, linewidth=1.6)
    axes.set_xlim(left, right)
    axes.set_ylim(min([above.rate(left), *rates]) / 1.5, max([above.product, *rates]) * 2)


def _write_numbers(
    axes: Axes, texts: Sequence[str], places: Sequence[tuple[float, float]], pixels_per_point: float
) -> None:
    """Write each of `texts` beside its place, far from all places and from what is written already, if that can be."""
    points = [tuple(axes.transData.transform(place) / pixels_per_point) for place in places]
    taken = list(points)
    for text, place, (x, y) in zip(texts, places, points, strict=True):
        others = [other for other in taken if other != (x, y)]
        free = (offset for offset in _OFFSETS if _room((x + offset[0], y + offset[1] + _MIDDLE), others))
        across, up = next(itertools.chain(free, _OFFSETS))
        taken.append((x + across, y + up + _MIDDLE))
        axes.annotate(text, place, (across, up), textcoords="offset points", ha="center", fontsize=9, color=INK)


def _room(point: tuple[float, float], others: Iterable[tuple[float, ...]]) -> bool:
    return all(math.dist(point, other) > _APART for other in others)
