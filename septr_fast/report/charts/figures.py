"""What all charts share: colours, and where the files go. matplotlib is imported where something is drawn."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from septr_fast.report.results import OURS, Run
from septr_fast.report.units import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import LayoutEngine
    from matplotlib.text import Text

GREEN = "#0b6e4f"
INK = "#333d47"
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""What is behind words that may stand on a line."""

DIGEST = "SHA-256 of what is drawn"
"""The entry of a PNG file's text that tells which data a chart was drawn from."""

NO_CHARTS = "no charts without matplotlib: pip install 'septr_fast[report]'"

_DPI = 120

_VARIANTS = ("#6fb98f", "#2f9e6e", "#a3d3b8", "#14532d", "#4fd08f")
_BASELINES = ("#8a97a5", "#1f5a99", "#7fb2e0", "#5b7db1", "#b8c2cc", "#4c8bc4", "#56616d", "#a9c9ea")


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def palette(runs: Iterable[Run]) -> dict[str, str]:
    """A colour for every model: green for SepTr, lighter greens for its variants, greys and blues for others."""
    models = dict.fromkeys(result.model for run in runs for result in run.results)
    variants = [model for model in models if model.startswith(OURS) and model != OURS]
    others = [model for model in models if not model.startswith(OURS)]
    colours = {OURS: GREEN}
    for names, shades in ((variants, _VARIANTS), (others, _BASELINES)):
        colours |= {model: shades[index % len(shades)] for index, model in enumerate(names)}
    return colours


@dataclass(frozen=True)
class Album:
    """Where the charts of one file go, and how a page refers to them.

    Attributes:
        folder: of the PNG files.
        prefix: of their names.
        link: the folder as the page refers to it, with a slash at the end; empty where it is the page's own.
        colours: by model.
        drawing: whether there are charts at all.
    """

    folder: Path
    prefix: str
    link: str
    colours: Mapping[str, str]
    drawing: bool

    def picture(self, name: str, words: str, draw: Callable[[Path], None]) -> str:
        """Let `draw` write a PNG file; return the line of Markdown that shows it, empty without charts.

        Args:
            name: of the chart, unique in the album.
            words: what it shows, for those who cannot see it.
            draw: called with the file's path.
        """
        if not self.drawing:
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = f"{self.prefix}-{slug(name)}.png"
        draw(self.folder / file)
        return f"![{words}]({self.link}{file})"


def layout() -> LayoutEngine:
    """Room between panels, so that no title touches the axis above it."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)


def tick(words: str) -> str:
    """A label of an axis without zeros behind the point: "2 ms" for "2.00 ms"."""
    return re.sub(r"\.0+(?= )", "", words)


def plain(axes: Axes) -> None:
    """Leave out what carries no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)


def entitle(axes: Axes, words: str) -> Text:
    """Write `words` above `axes`, from their left edge on."""
    return axes.set_title(words, loc="left", color=INK, fontsize=10)


def finish(figure: Figure, path: Path, drawn: object) -> None:
    """Wrap the titles of `figure` into the room they have, and write it as PNG with a hash of its data.

    Args:
        figure: whose titles `entitle` wrote.
        path: the file.
        drawn: all that the chart depends on, as plain values: its `repr` is what is hashed.
    """
    figure.set_dpi(_DPI)
    figure.draw_without_rendering()
    for axes in figure.axes:
        _wrap_title(axes)
    save(figure, path, {DIGEST: hashlib.sha256(repr(drawn).encode()).hexdigest()})


def _wrap_title(axes: Axes) -> None:
    """Break the title into lines no wider than `axes`, which the layout has given its place."""
    words = axes.get_title(loc="left")
    for length in range(len(words), 0, -1):
        if entitle(axes, textwrap.fill(words, length)).get_window_extent().width <= axes.bbox.width:
            return


def save(figure: Figure, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write `figure` as PNG with `text` as its metadata."""
    figure.savefig(path, dpi=_DPI, facecolor="white", metadata=text)
