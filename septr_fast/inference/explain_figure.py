"""An `Explanation` as one figure: the spectrogram, and beside and below it where the class token looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from septr_fast.inference.explain import Explanation
from septr_fast.report.charts.figures import INK, layout, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray

_BLUE = "#0072b2"
_SOUND_COLOURS, _ATTENTION_COLOURS = "magma", "cividis"
_ROUND_HERTZ = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
_CLOSEST_TICKS = 0.06
"""Least distance of two ticks, in heights of the spectrogram."""


def draw(explanation: Explanation, title: str, note: str, path: Path) -> None:
    """Draw `explanation` to a PNG file.

    Args:
        explanation: what `explain.explain` returned.
        title: of the whole figure.
        note: a smaller line below it; may be empty.
        path: the file, ending in ".png".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 9.0), layout=layout())
    figure.suptitle(title, color=INK, fontsize=15, fontweight="bold", parse_math=False)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.75, 1.0])[:, 0]
    above.suptitle(note, color=INK, fontsize=10, parse_math=False)
    _draw_spectrogram(above, explanation)
    _draw_maps(below, explanation)
    save(figure, path)


def _draw_spectrogram(figure: SubFigure, explanation: Explanation) -> None:
    """The spectrogram, at its right the attention over frequency and below it that over time."""
    (sound, beside), (under, corner) = figure.subplots(
        2, 2, sharex="col", sharey="row", gridspec_kw={"width_ratios": [4, 1.2], "height_ratios": [3, 1]}
    )
    quietest = explanation.decibels.min().item()
    image = _show(sound, explanation.decibels, explanation, (1, 1), _SOUND_COLOURS, low=quietest, high=0.0)
    _set_frequencies(sound, explanation)
    sound.set_title("spectrogram", loc="left", color=INK)
    edges = [_edges(explanation, axis) for axis in (0, 1)]
    profiles = [100 * profile.numpy() for profile in (explanation.frequency_profile, explanation.time_profile)]
    beside.stairs(profiles[0], edges[0], orientation="horizontal", fill=True, color=_BLUE)
    beside.axvline(100 / (1 + len(profiles[0])), color=INK, linewidth=1, linestyle="--")
    beside.set_title("attention over frequency", loc="left", color=INK)
    beside.set_xlabel("% a band", fontsize=9, color=INK)
    under.stairs(profiles[1], edges[1], fill=True, color=_BLUE)
    under.axhline(100 / (1 + len(profiles[1])), color=INK, linewidth=1, linestyle="--")
    under.set_title("attention over time", loc="left", color=INK)
    under.set_ylabel("% an interval", fontsize=9, color=INK)
    under.set_xlabel("seconds", fontsize=9, color=INK)
    for axes in (sound, beside, under):
        plain(axes)
        axes.tick_params(labelbottom=axes is not sound)
    beside.set_xlim(left=0)
    under.set_ylim(bottom=0)
    _draw_key(figure, corner, image, profiles)


def _draw_key(figure: SubFigure, corner: Axes, image: Any, profiles: Sequence[NDArray[Any]]) -> None:
    """What the colours and the dashed lines mean, in the empty corner."""
    corner.axis("off")
    bar = figure.colorbar(image, cax=corner.inset_axes((0.0, 0.85, 1.0, 0.12)), orientation="horizontal")
    bar.set_label("decibels below the loudest", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    rests = [100 - profile.sum().item() for profile in profiles]
    shares = f"{rests[0]:.1f} % (frequency), {rests[1]:.1f} % (time)"
    text = f"dashed: even attention\nleft out, the class token itself:\n{shares}"
    corner.text(0.0, -0.25, text, fontsize=8.5, color=INK, va="center", transform=corner.transAxes)


def _draw_maps(figure: SubFigure, explanation: Explanation) -> None:
    """Both maps of attention over the whole spectrogram."""
    figure.suptitle("The class token's attention in the last block, mean over heads", fontsize=11, color=INK)
    panels = (
        ("over frequency, in each interval of time", explanation.over_frequency),
        ("over time, in each band of frequencies", explanation.over_time),
    )
    for axes, (title, values) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        image = _show(axes, 100 * values, explanation, explanation.pooling, _ATTENTION_COLOURS, low=0.0)
        axes.set_title(title, loc="left", color=INK)
        axes.set_xlabel("seconds", fontsize=9, color=INK)
        plain(axes)
        bar = figure.colorbar(image, ax=axes)
        bar.set_label("%", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=INK)
    _set_frequencies(figure.axes[0], explanation)


def _show(
    axes: Axes,
    values: Tensor,
    explanation: Explanation,
    pooling: tuple[int, int],
    colours: str,
    *,
    low: float,
    high: float | None = None,
) -> Any:
    """`values` `(rows, columns)` as an image, each of `pooling` bins and frames, over seconds and bins."""
    rows, columns = values.shape
    bins, frames = explanation.decibels.shape
    left, right = (_seconds(explanation, frame) for frame in (0, columns * pooling[1]))
    image = axes.imshow(
        values.numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(left, right, 0, rows * pooling[0]),
        cmap=colours,
        vmin=low,
        vmax=high,
    )
    axes.set_xlim(left, _seconds(explanation, frames))
    axes.set_ylim(0, bins)
    return image


def _seconds(explanation: Explanation, frame: float) -> float:
    """Where frame number `frame` begins on the axis of time, its middle being half a frame later."""
    return explanation.first_seconds + (frame - 0.5) * explanation.frame_seconds


def _edges(explanation: Explanation, axis: int) -> list[float]:
    """Where the tokens along frequency (0) or time (1) begin and end, in bins or seconds."""
    step = explanation.pooling[axis]
    places = [float(step * token) for token in range(explanation.over_time.shape[axis] + 1)]
    return places if axis == 0 else [_seconds(explanation, place) for place in places]


def _set_frequencies(axes: Axes, explanation: Explanation) -> None:
    """Ticks at round frequencies on an axis that counts bins."""
    axes.set_yticks(*_frequency_ticks(explanation))
    axes.set_ylabel(f"hertz{', mel scale' if explanation.is_mel else ''}", fontsize=9, color=INK)


def _frequency_ticks(explanation: Explanation) -> tuple[list[float], list[str]]:
    """Places in bins and labels of ticks at round frequencies, not too close, the highest first."""
    import numpy
    from matplotlib.ticker import MaxNLocator

    hertz = explanation.hertz.numpy()
    wanted = _ROUND_HERTZ if explanation.is_mel else MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0.0, hertz[-1])
    places: list[float] = []
    labels: list[str] = []
    for value in sorted(wanted, reverse=True):
        if not hertz[0] <= value <= hertz[-1]:
            continue
        place = float(numpy.interp(value, hertz, numpy.arange(len(hertz)))) + 0.5
        if not places or places[-1] - place >= _CLOSEST_TICKS * len(hertz):
            places.append(place)
            labels.append(f"{value:g}")
    return places, labels
