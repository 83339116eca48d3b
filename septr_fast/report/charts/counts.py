"""What kernels compute and move, drawn where there are no roofs to draw them under."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from septr_fast.report.charts.figures import GREEN, INK, entitle, finish, plain, tick
from septr_fast.report.results import Kernel
from septr_fast.report.roofline import intensity
from septr_fast.report.units import quantity, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_PRODUCTS = "no matrix products"


def draw(kernels: Sequence[Kernel], words: str, path: Path) -> None:
    """Draw FLOP per byte and bytes of `kernels`, one line for each, with `words` above, to the PNG file `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 1.1 + 0.27 * len(kernels)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_intensities(left, [intensity(kernel) for kernel in kernels])
    _draw_bytes(right, kernels)
    left.set_yticks(range(len(kernels)), [f"{number}  {kernel.name}" for number, kernel in enumerate(kernels, 1)])
    left.set_ylim(len(kernels) - 0.4, -0.6)
    entitle(left, words)
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        plain(axes)
    right.tick_params(left=False)
    finish(figure, path, (kernels, words))


def _draw_intensities(axes: Axes, ratios: Sequence[float | None]) -> None:
    from matplotlib.ticker import NullFormatter

    known = [ratio for ratio in ratios if ratio is not None] or [1.0]
    axes.set_xscale("log")
    axes.set_xlim(min(known) / 2, max(known) * 3)
    for place, ratio in enumerate(ratios):
        if ratio is None:
            at = axes.get_yaxis_transform()
            axes.text(0.02, place, NO_PRODUCTS, va="center", fontsize=9, style="italic", color=INK, transform=at)
            continue
        axes.plot(ratio, place, marker="o", markerfacecolor="white", color=GREEN, markersize=7)
        label = significant(ratio)
        axes.annotate(label, (ratio, place), (9, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_xlabel("FLOP per byte", fontsize=9, color=INK)


def _draw_bytes(axes: Axes, kernels: Sequence[Kernel]) -> None:
    most = max(kernel.bytes for kernel in kernels)
    for place, kernel in enumerate(kernels):
        axes.barh(place, kernel.bytes, 0.55, color=GREEN)
        label = quantity(kernel.bytes, "B")
        axes.text(kernel.bytes + 0.02 * most, place, label, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.25 * most)
    axes.xaxis.set_major_formatter(lambda value, place: tick(quantity(value, "B")))
    axes.set_xlabel("read and written", fontsize=9, color=INK)
