"""Kernels under their roofs, drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from septr_fast.report.charts import counts as counts_chart
from septr_fast.report.charts.figures import CLEAR, GREEN, INK, entitle, finish, plain, tick
from septr_fast.report.results import Kernel, Run
from septr_fast.report.roofline import Roofs, by_case, intensity, measured, roofs, status
from septr_fast.report.units import duration, quantity, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_OFFSETS = ((0, 9), (0, -15), (11, -3), (-11, -3), (12, 9), (-12, 9), (12, -15), (-12, -15), (0, 22), (0, -28))
"""Where a number may stand beside its point, in points of 1/72 inch."""

_APART = 11.0
"""How far a number keeps from points and other numbers, in the same unit."""

_MIDDLE = 3.0
"""From a number's lower edge to its middle, in the same unit."""

NO_PRODUCTS = "Kernels without matrix products: how fast they move their bytes"

Numbered = Mapping[int, Kernel]
"""Kernels by their number, from 1, in chart and table."""


def draw(run: Run, case: str, path: Path) -> None:
    """Draw all kernels of `case` to the PNG file `path`: under roofs, where they are known."""
    kernels = by_case(run)[case]
    above = roofs(run, case)
    if above is None:
        counts_chart.draw(kernels, status(run, case), path)
    else:
        _draw(run, kernels, above, status(run, case), path)


def _draw(run: Run, kernels: Sequence[Kernel], above: Roofs, words: str, path: Path) -> None:
    """Draw the roofline of the kernels with products, and below it how fast the others move their bytes."""
    from matplotlib.figure import Figure

    numbered = dict(enumerate(kernels, 1))
    products = {number: kernel for number, kernel in numbered.items() if intensity(kernel) is not None}
    others = {number: kernel for number, kernel in numbered.items() if number not in products}
    heights = [height for height, shown in ((5.6, products), (0.9 + 0.27 * len(others), others)) if shown]
    figure = Figure(figsize=(10.5, sum(heights)), layout="constrained")
    parts = iter(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if products:
        _draw_roofline(next(parts), run, products, above, words)
    if others:
        _draw_copies(next(parts).subplots(), run, others, above, NO_PRODUCTS if products else f"{NO_PRODUCTS}. {words}")
    finish(figure, path, (kernels, above, words))


def _draw_roofline(figure: SubFigure, run: Run, numbered: Numbered, above: Roofs, words: str) -> None:
    axes, legend = figure.subplots(1, 2, width_ratios=(3, 1))
    axes.set_xscale("log")
    axes.set_yscale("log")
    places = [_place(run, kernel, above) for kernel in numbered.values()]
    _draw_roofs(axes, above, [ratio for ratio, _ in places], [rate for _, rate in places])
    for kernel, place in zip(numbered.values(), places, strict=True):
        fill = "white" if measured(run, kernel) is None else GREEN
        axes.plot(*place, marker="o", color=GREEN, markerfacecolor=fill, markersize=7, linestyle="none", zorder=3)
    axes.set_xlabel("FLOP per byte", fontsize=9, color=INK)
    entitle(axes, words)
    axes.yaxis.set_major_formatter(lambda value, place: tick(quantity(value, "FLOP/s")))
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.grid(alpha=0.25, linewidth=0.6)
    plain(axes)
    legend.axis("off")
    legend.text(
        0, 1, _legend(numbered, above), va="top", fontsize=9, linespacing=1.5, color=INK, transform=legend.transAxes
    )
    figure.figure.draw_without_rendering()
    _write_numbers(axes, [str(number) for number in numbered], places, figure.dpi / 72)


def _draw_copies(axes: Axes, run: Run, numbered: Numbered, above: Roofs, words: str) -> None:
    """Draw the share of a copy's bandwidth that each kernel reaches; hollow, all of it, where it was not timed."""
    from matplotlib.ticker import PercentFormatter

    ends = [_draw_copy(axes, place, kernel, run, above) for place, kernel in enumerate(numbered.values())]
    axes.axvline(1.0, color=INK, linewidth=1.6, zorder=0)
    axes.set_yticks(range(len(numbered)), [f"{number}  {kernel.name}" for number, kernel in numbered.items()])
    axes.set_ylim(len(numbered) - 0.4, -0.6)
    axes.set_xlim(0, max(1.0, *ends) * 1.25)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"of the bandwidth of a copy, {quantity(above.copy, 'B/s')}", fontsize=9, color=INK)
    entitle(axes, words)
    plain(axes)


def _draw_copy(axes: Axes, place: int, kernel: Kernel, run: Run, above: Roofs) -> float:
    """Draw one kernel; return where its bar ends."""
    seconds, least = measured(run, kernel), above.seconds(kernel)
    reached = 1.0 if seconds is None else least / seconds
    label = f"at best {duration(least)}" if seconds is None else f"{duration(seconds)}, {share(reached)}"
    axes.barh(place, reached, 0.55, facecolor="white" if seconds is None else GREEN, edgecolor=GREEN)
    axes.annotate(
        label, (reached, place), (7, 0), textcoords="offset points", va="center", fontsize=9, color=INK, bbox=CLEAR
    )
    return reached


def _place(run: Run, kernel: Kernel, above: Roofs) -> tuple[float, float]:
    """FLOP per byte and FLOP per second, measured; where it was not, what the roofs allow."""
    ratio, seconds = kernel.flops / kernel.bytes, measured(run, kernel)
    return ratio, above.rate(ratio) if seconds is None else kernel.flops / seconds


def _legend(numbered: Numbered, above: Roofs) -> str:
    """The kernels' names by number, and what the line is."""
    names = [f"{number:\u2007>2}  {kernel.name}" for number, kernel in numbered.items()]
    copy, product = quantity(above.copy, "B/s"), quantity(above.product, "FLOP/s")
    return "\n".join([*names, "", "the line:", f"copy, {copy}", f"product in {above.precision}, {product}"])


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
    style: dict[str, Any] = {"fontsize": 9, "color": INK, "bbox": CLEAR, "zorder": 2.5}
    for text, place, (x, y) in zip(texts, places, points, strict=True):
        others = [other for other in taken if other != (x, y)]
        free = (offset for offset in _OFFSETS if _room((x + offset[0], y + offset[1] + _MIDDLE), others))
        across, up = next(itertools.chain(free, _OFFSETS))
        taken.append((x + across, y + up + _MIDDLE))
        axes.annotate(text, place, (across, up), textcoords="offset points", ha="center", **style)


def _room(point: tuple[float, float], others: Iterable[tuple[float, ...]]) -> bool:
    return all(math.dist(point, other) > _APART for other in others)
