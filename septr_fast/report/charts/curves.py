"""Curves of growth: measured points and the power laws fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from septr_fast.report.charts.figures import INK, entitle, finish, layout, plain, tick
from septr_fast.report.fits import Curve, fit
from septr_fast.report.units import duration, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = {"height": "frequency bins", "width": "time intervals", "depth": "blocks", "batch": "spectrograms at a time"}
_MARKERS = "osD^vP*Xdph"

Points = Callable[[Curve], list[tuple[float, float]]]


def draw(curves: Sequence[Curve], colours: Mapping[str, str], path: Path) -> None:
    """Draw `curves`, at least one, a column for each axis, to the PNG file `path`."""
    from matplotlib.figure import Figure

    kinds: list[tuple[str, Points, Callable[[float], str]]] = [
        ("time of a call", lambda curve: curve.seconds, duration),
        ("peak memory", lambda curve: curve.peak_bytes, lambda size: quantity(size, "B")),
    ]
    shown = [kind for kind in kinds if any(kind[1](curve) for curve in curves)]
    places = list(dict.fromkeys(curve.axis for curve in curves))
    styles = _styles(curves, colours)
    figure = Figure(figsize=(max(7.0, 4.2 * len(places)), 3.5 * len(shown) + 0.9), layout=layout())
    grid = figure.subplots(len(shown), len(places), squeeze=False)
    for row, (title, points, words) in enumerate(shown):
        for column, place in enumerate(places):
            axes = grid[row][column]
            own = [curve for curve in curves if curve.axis == place and points(curve)]
            _draw(axes, own, points, words, styles)
            entitle(axes, f"{title} along the {place}")
            axes.set_xlabel(UNITS.get(place, place), fontsize=9, color=INK)
            plain(axes)
    handles = [_handle(*style, label=model) for model, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    drawn = [(title, curve.axis, curve.model, points(curve)) for title, points, _ in shown for curve in curves]
    finish(figure, path, (drawn, styles))


def _styles(curves: Iterable[Curve], colours: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every model; a precision behind its name leaves the colour."""
    found: dict[str, tuple[str, str]] = {}
    for curve in curves:
        model = curve.measured[0].model
        found.setdefault(curve.model, (colours[model], _MARKERS[len(found) % len(_MARKERS)]))
    return found


def _handle(colour: str, marker: str, label: str) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.4, label=label)


def _draw(
    axes: Axes,
    curves: Iterable[Curve],
    points: Points,
    words: Callable[[float], str],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    """Draw the points of `curves` in one pair of axes, and their lines."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks: set[float] = set()
    for curve in curves:
        colour, marker = styles[curve.model]
        measured = points(curve)
        axes.plot(*zip(*measured, strict=True), color=colour, marker=marker, markersize=5, linestyle="none")
        ticks.update(at for at, _ in measured)
        law = fit(measured)
        if law is not None:
            ends = (measured[0][0], measured[-1][0])
            axes.plot(ends, [law(end) for end in ends], color=colour, linewidth=1.4)
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: tick(words(value))))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, linewidth=0.6)
