"""What a run looks like: its curves, and which class was taken for which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from septr_fast.commands.options import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "mean_average_precision": "mean average precision",
    "learning_rate": "learning rate",
    "samples_per_second": "samples per second",
}
"""What each panel shows: the end of the names of its curves, and its title."""

_COLOURS = ("#0b6e4f", "#1f5a99", "#b4532a", "#8a97a5", "#6fb98f", "#7fb2e0")
_STYLES = ("-", "--", "-.", ":")
_INK = "#333d47"
_DOTS_PER_INCH = 120
_MOST_NUMBERED_CLASSES = 24
_INCHES_PER_CLASS = 0.24
_LEAST_INCHES = 5.0


def curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss, accuracy, learning rate and samples per second over the epochs, those of them that there are.

    Args:
        history: one mapping an epoch. Numbers under a name that ends in "loss", "accuracy", "mean_average_precision",
            "learning_rate" or "samples_per_second" are drawn, what stands before that names the curve; "epoch" is
            where, by default 1, 2, 3...; None and what is not finite are gaps.
        path: the PNG file.

    Raises:
        ValueError: for a history without anything to draw.
        ImportError: where matplotlib is missing.
    """
    from matplotlib.figure import Figure

    names = sorted({name for row in history for name in row}, key=lambda name: (not name.startswith("train"), name))
    panels = {ending: [name for name in names if name.endswith(ending)] for ending in _PANELS}
    drawn = {ending: found for ending, found in panels.items() if found}
    if not drawn:
        raise ValueError(f"history: expected epochs with a number for {', '.join(_PANELS)}, got {names or 'no epoch'}")
    epochs = [float(row.get("epoch", index)) for index, row in enumerate(history, start=1)]
    columns = min(len(drawn), 2)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), dpi=_DOTS_PER_INCH, layout="constrained")
    for index, (ending, found) in enumerate(drawn.items(), start=1):
        _draw_panel(figure.add_subplot(rows, columns, index), ending, found, epochs, history)
    figure.savefig(path, format="png")


def confusion(matrix: ArrayLike, classes: Sequence[str], path: Path) -> None:
    """Draw how often clips of each class (rows) were taken for each class (columns).

    Colours are shares of a row; the counts stand in the cells where they can be read.

    Args:
        matrix: `(classes, classes)`, counts.
        classes: their names.
        path: the PNG file.

    Raises:
        ValueError: for a matrix of another shape.
        ImportError: where matplotlib is missing.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    if counts.shape != (len(classes), len(classes)) or not len(classes):
        raise ValueError(f"matrix: expected {(len(classes), len(classes))} for the classes, got {counts.shape}")
    side = max(_LEAST_INCHES, _INCHES_PER_CLASS * len(classes) + 2)
    figure = Figure(figsize=(side + 0.8, side), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Greens")
    places = range(len(classes))
    size = 9 if len(classes) <= _MOST_NUMBERED_CLASSES else 7
    names = [shown(name) for name in classes]
    axes.set_xticks(places, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if len(classes) <= _MOST_NUMBERED_CLASSES:
        _number_cells(axes, counts, shares)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    accuracy = (
        f"{np.trace(counts) / counts.sum():.1%} of {int(counts.sum())} clips right" if counts.sum() else "no clips"
    )
    axes.set_title(accuracy, color=_INK, fontsize=11)
    figure.savefig(path, format="png")


def average_precision(values: Sequence[float | None], classes: Sequence[str], path: Path) -> None:
    """Draw the average precision of each class, the best on top.

    Args:
        values: one for each class, from 0 to 1; None for a class without clips, which is left out.
        classes: their names.
        path: the PNG file.

    Raises:
        ValueError: for values of another number, or no class with clips.
        ImportError: where matplotlib is missing.
    """
    from matplotlib.figure import Figure

    found = [(value, shown(name)) for value, name in zip(values, classes, strict=True) if value is not None]
    if not found:
        raise ValueError("values: expected a class with clips, got none")
    found.sort()
    figure = Figure(figsize=(6.5, 1.4 + _INCHES_PER_CLASS * len(found)), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(found)), [value for value, _ in found], color=_COLOURS[0])
    axes.set_yticks(range(len(found)), [name for _, name in found], fontsize=9, parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision")
    mean = sum(value for value, _ in found) / len(found)
    axes.set_title(f"mean average precision {mean:.3f} of {len(found)} classes", color=_INK, fontsize=11)
    figure.savefig(path, format="png")


def _draw_panel(
    axes: Axes, ending: str, names: Sequence[str], epochs: Sequence[float], history: Sequence[Mapping[str, Any]]
) -> None:
    """The curves `names` over `epochs`."""
    from matplotlib.ticker import MaxNLocator

    for index, name in enumerate(names):
        values = [math.nan if row.get(name) is None else float(row[name]) for row in history]
        label = name.removesuffix(ending).strip("_ ").replace("_", " ")
        axes.plot(
            epochs,
            values,
            label=label or None,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_STYLES[index % len(_STYLES)],
            marker="o" if len(epochs) < 3 else "",
            linewidth=1.6,
        )
    axes.set_title(_PANELS[ending], color=_INK, fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)


def _number_cells(axes: Axes, counts: NDArray[Any], shares: NDArray[Any]) -> None:
    """Write each count that is not zero into its cell."""
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else _INK
            axes.text(column, row, f"{count:g}", ha="center", va="center", fontsize=8, color=colour)
