"""The page: every run's findings as sentences, charts and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from septr_fast.report import roofline, static, tables
from septr_fast.report.charts import bars, curves
from septr_fast.report.charts import roofline as roofline_chart
from septr_fast.report.charts.figures import Album, palette
from septr_fast.report.fits import curves as measured_curves
from septr_fast.report.groups import speed_groups, title
from septr_fast.report.results import Run
from septr_fast.report.sources import Sources
from septr_fast.report.static import Evidence
from septr_fast.report.summary import ceilings, device, machine, sentences

NAME = "report.md"
GROWTH_LEGEND = (
    "Fitted to the measured points: time = a · size^power, by least squares in the logarithms. Power 1 grows in "
    "proportion, power 2 with the square. In brackets: how many points, and how far one is off the line at most."
)


def write(sources: Sources, folder: Path, drawing: bool) -> Path:
    """Write the page and its charts to `folder`; return the page's path.

    Args:
        sources: what is reported.
        folder: is made where it is missing.
        drawing: whether there are charts; they need matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colours = palette(sources.runs.values())
    blocks = ["# SepTr: what was measured", *_in_short(sources)]
    for name, run in sources.runs.items():
        blocks += [f"## {device(run)} ({name})", *section(run, Album(folder, name, "", colours, drawing))]
    for name, evidence in sources.compiled.items():
        blocks += [f"## {static.TITLE} ({name})", *compiled(evidence)]
    path = folder / NAME
    path.write_text("\n\n".join(block for block in blocks if block) + "\n", encoding="utf-8")
    return path


def _in_short(sources: Sources) -> Iterator[str]:
    if sources.runs:
        yield "## In short"
    for run in sources.runs.values():
        yield f"**{device(run)}**"
        yield "\n".join(f"- {sentence}" for sentence in sentences(run))


def section(run: Run, album: Album) -> Iterator[str]:
    """All of one run, block by block; blocks may be empty."""
    yield machine(run)
    yield ceilings(run)
    if speed_groups(run):
        yield f"{tables.SPEED_LEGEND} {tables.USEFUL_LEGEND}"
    for group in speed_groups(run):
        cases = run.cases(group)
        yield f"### Speed: {title(group).lower()}"
        yield speed_chart(cases, album, group)
        yield tables.speed(run, (result for results in cases.values() for result in results))
    yield from _memory(run, album)
    yield from growth(run, album)
    yield from kernels(run, album)
    if run.not_run:
        yield "### Not run"
        yield tables.not_run(run)


def speed_chart(cases: bars.Cases, album: Album, name: str) -> str:
    """Bars of time against SepTr; empty where nothing was timed beside it."""
    panels = bars.speed_panels(cases)
    if not panels:
        return ""
    return album.picture(
        f"speed {name}", "time of every model, SepTr = 1", lambda path: bars.draw(panels, album.colours, path)
    )


def memory_charts(cases: bars.Cases, album: Album) -> Iterator[str]:
    """Bars of what is kept for the backward pass and of the peak; nothing where none is known of two models."""
    saved, peak = bars.saved_panels(cases), bars.peak_panels(cases)
    if saved:
        words = "memory that every model keeps for the backward pass"
        yield album.picture("memory kept", words, lambda path: bars.draw(saved, album.colours, path))
    if peak:
        words = "memory that every model takes at the peak"
        yield album.picture("memory peak", words, lambda path: bars.draw(peak, album.colours, path))


def _memory(run: Run, album: Album) -> Iterator[str]:
    cases = {case: results for group in speed_groups(run) for case, results in run.cases(group).items()}
    found = [*memory_charts(cases, album), *largest_batch(run)]
    if any(found):
        yield "### Memory"
        yield from found


def largest_batch(run: Run) -> Iterator[str]:
    """The most spectrograms at a time for each model; nothing where nobody asked."""
    table = tables.largest_batch(run)
    if table:
        yield "The largest batch whose training step fits:"
        yield table


def growth(run: Run, album: Album) -> Iterator[str]:
    """How time and memory grow; nothing without growth curves."""
    found = measured_curves(run)
    if found:
        yield "### Growth"
        yield album.picture(
            "growth",
            "time and peak memory along each axis, with the fitted lines",
            lambda path: curves.draw(found, album.colours, path),
        )
        yield GROWTH_LEGEND
        yield tables.growth(run)


def kernels(run: Run, album: Album) -> Iterator[str]:
    """The kernels of each case under their roofs; nothing without kernels."""
    for case in roofline.by_case(run):
        yield f"### Kernels: {case}"
        yield roofline.status(run, case)
        yield _roofline_chart(run, case, album)
        yield roofline.table(run, case)


def _roofline_chart(run: Run, case: str, album: Album) -> str:
    words = "FLOP and bytes of every kernel, under the roofs of the device where they are known"
    return album.picture(f"roofline {case}", words, lambda path: roofline_chart.draw(run, case, path))


def compiled(evidence: Evidence) -> Iterator[str]:
    """What compiled kernels show."""
    yield static.about(evidence)
    yield static.table(evidence)
    yield static.LEGEND
    yield "\n".join(f"- {text}" for text in static.shortfalls(evidence))
