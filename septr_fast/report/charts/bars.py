"""Bars: time against SepTr, and memory, one panel for each case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from septr_fast.report.charts.figures import CLEAR, INK, entitle, finish, layout, plain
from septr_fast.report.groups import ours
from septr_fast.report.results import Result
from septr_fast.report.units import duration, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cases = Mapping[str, Sequence[Result]]

_BAR, _HEAD, _WIDTH = 0.27, 1.0, 6.6
"""Inches: height of a bar, height of what is around the bars of a panel, width of a panel."""


@dataclass(frozen=True)
class Bar:
    """One model's value with what is written beside it; `low` and `high` are the ends of its whisker."""

    model: str
    value: float
    label: str
    low: float | None = None
    high: float | None = None

    @property
    def end(self) -> float:
        """Where bar or whisker ends."""
        return self.value if self.high is None else max(self.value, self.high)


@dataclass(frozen=True)
class Panel:
    """Bars that can be compared.

    Attributes:
        title: above them.
        axis: what their length means.
        bars: from top to bottom.
        line: a value that is marked; None for none.
    """

    title: str
    axis: str
    bars: Sequence[Bar]
    line: float | None = None


def speed_panels(cases: Cases) -> list[Panel]:
    """Time relative to SepTr for the cases in which something was timed beside it."""
    panels = []
    for case, results in cases.items():
        bars = [_time_bar(result) for result in results if result.ratio is not None or result is ours(results)]
        if len(bars) > 1:
            panels.append(Panel(case, "time, SepTr beside it = 1; shorter is faster", bars, line=1.0))
    return panels


def _time_bar(result: Result) -> Bar:
    if result.ratio is None:
        return Bar(result.model, 1.0, duration(result.seconds))
    label = f"{duration(result.seconds)}, {result.ratio:.2f} x"
    return Bar(result.model, result.ratio, label, result.lowest_ratio, result.highest_ratio)


def saved_panels(cases: Cases) -> list[Panel]:
    """What each model keeps for the backward pass, in the cases in which it is known of two."""
    return _memory_panels(cases, "GB kept for the backward pass", lambda result: result.saved_bytes)


def peak_panels(cases: Cases) -> list[Panel]:
    """What each model takes at most, in the cases in which it is known of two."""
    return _memory_panels(cases, "GB at the peak", lambda result: result.peak_bytes)


def _memory_panels(cases: Cases, axis: str, size: Callable[[Result], int | None]) -> list[Panel]:
    panels = []
    for case, results in cases.items():
        sizes = [(result.model, size(result)) for result in results]
        bars = [Bar(model, found / 1e9, quantity(found, "B")) for model, found in sizes if found]
        if len(bars) > 1:
            panels.append(Panel(case, axis, bars))
    return panels


def draw(panels: Sequence[Panel], colours: Mapping[str, str], path: Path) -> None:
    """Draw `panels`, at least one, two beside each other, to the PNG file `path`."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [_HEAD + _BAR * max(len(panel.bars) for panel in row) for row in rows]
    figure = Figure(figsize=(_WIDTH * columns, sum(heights)), layout=layout())
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for row, beside in enumerate(rows):
        most = max(len(panel.bars) for panel in beside)
        for column, panel in enumerate(beside):
            _draw(figure.add_subplot(grid[row, column]), panel, colours, most)
    shown = {bar.model: colours[bar.model] for panel in panels for bar in panel.bars}
    finish(figure, path, (panels, shown))


def _draw(axes: Axes, panel: Panel, colours: Mapping[str, str], places: int) -> None:
    """Draw one panel, with room for as many bars as the panel beside it has."""
    longest = max(bar.end for bar in panel.bars)
    for place, bar in enumerate(panel.bars):
        axes.barh(place, bar.value, 0.72, color=colours[bar.model])
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.2, marker="|", markersize=6)
        axes.text(bar.end + 0.02 * longest, place, bar.label, va="center", fontsize=9, color=INK, bbox=CLEAR)
    if panel.line is not None:
        axes.axvline(panel.line, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    axes.set_yticks(range(len(panel.bars)), [bar.model for bar in panel.bars])
    axes.set_ylim(places - 0.4, -0.6)
    axes.set_xlim(0, 1.42 * longest)
    entitle(axes, panel.title)
    axes.set_xlabel(panel.axis, fontsize=9, color=INK)
    plain(axes)
