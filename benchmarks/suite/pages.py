"""The README's part on results, from the files kept in benchmarks/results: `python -m benchmarks.suite.pages`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.gpu import figures as gpu_figures
from septr_fast.report import page, static, tables
from septr_fast.report.charts import figures
from septr_fast.report.charts.figures import Album, palette
from septr_fast.report.groups import main_cases
from septr_fast.report.results import Run
from septr_fast.report.sources import Sources, read
from septr_fast.report.summary import ceilings, device, is_cpu, machine, sentences

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- results -->\n", "<!-- end of results -->"
NO_GPU = "No GPU has been measured yet."


def update(readme: Path, results: Path, drawing: bool) -> None:
    """Write what the JSON files in `results` tell between the markers in `readme`, and the charts to `results`.

    Args:
        readme: a Markdown file with the markers.
        results: a folder below that of `readme`.
        drawing: whether there are charts; they need matplotlib.

    Raises:
        ValueError: if the markers are missing, if there is no file, or if one holds something else.
    """
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"readme: expected the markers {START!r} and {END!r} in {readme}")
    files = [file for file in sorted(results.glob("*.json")) if not gpu_figures.is_check(gpu_figures.content(file))]
    if not files:
        raise ValueError(f"results: expected JSON files in {results}, found none")
    link = f"{results.relative_to(readme.parent).as_posix()}/"
    blocks = "\n\n".join(block for block in _blocks(read(files), results, link, drawing) if block)
    readme.write_text(f"{before}{START}{blocks}\n{END}{after}", encoding="utf-8")


def _blocks(sources: Sources, folder: Path, link: str, drawing: bool) -> Iterator[str]:
    colours = palette(sources.runs.values())
    for name, run in sources.runs.items():
        yield f"### {device(run)}"
        yield from _section(run, Album(folder, name, link, colours, drawing))
    if all(is_cpu(run) for run in sources.runs.values()):
        yield NO_GPU
        for evidence in sources.compiled.values():
            yield f"### {static.TITLE}"
            yield from _folded("Every kernel", page.compiled(evidence))


def _section(run: Run, album: Album) -> Iterator[str]:
    """The main findings of one run: of every group the first case, and how time and memory grow."""
    yield f"{machine(run)} All figures: [{album.prefix}.json]({album.link}{album.prefix}.json)."
    yield "\n".join(f"- {sentence}" for sentence in sentences(run))
    cases = main_cases(run)
    if cases:
        yield page.speed_chart(cases, album, "main cases")
        table = tables.speed(run, (result for results in cases.values() for result in results))
        legend = f"{tables.SPEED_LEGEND} {tables.USEFUL_LEGEND}"
        yield from _folded("In figures", (table, legend, ceilings(run)))
        yield from _folded("Memory", page.memory_charts(cases, album))
    yield from _folded("Largest batch", page.largest_batch(run))
    yield from _folded("Growth", page.growth(run, album))
    yield from _folded("Work of every kernel", page.kernels(run, album))
    yield from _folded("Not run", [tables.not_run(run)])


def _folded(title: str, blocks: Iterable[str]) -> Iterator[str]:
    """`blocks` to unfold below `title`, other headings in bold; nothing where there are none."""
    inside = [block for block in blocks if block not in ("", f"### {title}")]
    if inside:
        yield f"<details>\n<summary>{title}</summary>"
        yield from (block.replace("### ", "**", 1) + "**" if block.startswith("### ") else block for block in inside)
        yield "</details>"


def main(readme: Path = ROOT / "README.md", results: Path = RESULTS) -> int:
    """Update the README; return the exit status: 2 where the markers or the results are not as they should be."""
    drawing = figures.available()
    if not drawing:
        sys.stderr.write(f"benchmarks.suite.pages: {figures.NO_CHARTS}\n")
    try:
        update(readme, results, drawing)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks.suite.pages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
