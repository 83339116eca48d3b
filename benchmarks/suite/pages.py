"""Pages of the results kept in benchmarks/results: `python -m benchmarks.suite.pages`.

The README gets one table and one chart of one run. `docs/results.md` gets a summary of every run; its long tables lie
beside the results, as CSV files of the same names.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu import figures as gpu_figures
from benchmarks.suite import cases
from septr_fast.report import page, static, tables
from septr_fast.report.charts import figures
from septr_fast.report.charts.figures import Album, palette
from septr_fast.report.groups import main_cases, reach
from septr_fast.report.results import Run
from septr_fast.report.sources import Sources, read
from septr_fast.report.summary import ceilings, device, is_cpu, machine, sentences
from septr_fast.report.units import duration

ROOT = Path(__file__).resolve().parents[2]
README, PAGE, RESULTS = Path("README.md"), Path("docs/results.md"), Path("benchmarks/results")
"""What is written and where the results lie, below the root."""
START, END = "<!-- results -->\n", "<!-- end of results -->"
NO_GPU = "On a GPU: not measured yet."
ROWS = 8
"""Most rows of the README's table."""
TASKS = (cases.FORWARD, cases.STEP)
"""Groups that the README shows."""
COLUMNS = (
    "model",
    "median",
    "SepTr beside it",
    "SepTr is",
    "kept for backward",
    "peak memory",
    "error against float64",
)
HEAD = """# Results

Made from the files in `benchmarks/results` by `python -m benchmarks.suite.pages`; edits by hand are lost. What is
compared, and how: [benchmarks.md](benchmarks.md)."""


def update(root: Path, drawing: bool) -> None:
    """Write the README's part, the page, the charts and the tables from the JSON files in the folder of results.

    Args:
        root: of the checkout; its README has the markers.
        drawing: whether there are charts; they need matplotlib.

    Raises:
        ValueError: if the markers are missing, if there is no file, or if one holds something else.
    """
    readme, results = root / README, root / RESULTS
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"readme: expected the markers {START!r} and {END!r} in {readme}")
    stored = read(_files(results))
    colours = palette(stored.runs.values())

    def album(name: str, link: str) -> Album:
        return Album(results, name, link, colours, drawing)

    blocks = _joined(_first(stored, album))
    readme.write_text(f"{before}{START}{blocks}\n{END}{after}", encoding="utf-8")
    (root / PAGE).parent.mkdir(exist_ok=True)
    (root / PAGE).write_text(_joined([HEAD, *_page(stored, album)]) + "\n", encoding="utf-8")
    for name, run in stored.runs.items():
        _write(results / f"{name}.csv", [asdict(result) for result in run.results])
    for name, evidence in stored.compiled.items():
        _write(results / f"{name}.csv", evidence.kernels)


def _files(results: Path) -> list[Path]:
    found = [path for path in sorted(results.glob("*.json")) if path.name != "sources.json"]
    found = [path for path in found if not gpu_figures.is_check(gpu_figures.content(path))]
    if not found:
        raise ValueError(f"results: expected JSON files in {results}, found none")
    return found


def _joined(blocks: Any) -> str:
    return "\n\n".join(block for block in blocks if block)


def _first(stored: Sources, album: Any) -> Iterator[str]:
    """What the README shows: of a GPU where there is one, otherwise of the first processor."""
    name, run = min(stored.runs.items(), key=lambda item: (is_cpu(item[1]), item[0]))
    about = run.stamp
    versions = about.get("versions", {})
    yield (
        f"Measured on {device(run)}, {about.get('threads')} threads, float32, with PyTorch {versions.get('torch')}, at "
        f"{about.get('commit')}.\nEvery call is timed right after one of SepTr; medians, lowest and highest ratio in "
        "brackets."
        if is_cpu(run)
        else machine(run)
    )
    yield _table(run)
    chosen = {case: found for case, found in main_cases(run).items() if found[0].group in TASKS}
    yield page.speed_chart(chosen, album(name, f"{RESULTS.as_posix()}/"), "main cases")
    everything = f"[All results]({PAGE.as_posix()})"
    yield f"{NO_GPU} {everything}." if is_cpu(run) else f"{everything}."


def _table(run: Run) -> str:
    rows = [
        (
            f"{result.group}, {result.size[0]}x{result.size[1]}, batch {result.batch}",
            result.model,
            duration(result.seconds),
            duration(result.ours_seconds or 0.0),
            f"{result.ratio:.2f} x as fast{reach(result)}",
        )
        for found in main_cases(run).values()
        for result in found
        if result.group in TASKS and result.ratio is not None
    ]
    return tables.markdown(("task", "compared with", "takes", "SepTr takes", "SepTr is"), rows[:ROWS])


def _page(stored: Sources, album: Any) -> Iterator[str]:
    for name, run in stored.runs.items():
        yield f"## {device(run)}, setting {run.setting}"
        yield from _section(run, album(name, f"../{RESULTS.as_posix()}/"))
    if all(is_cpu(run) for run in stored.runs.values()):
        yield NO_GPU
    for name, evidence in stored.compiled.items():
        yield f"## {static.TITLE}"
        yield static.about(evidence)
        wrong = static.shortfalls(evidence)
        yield f"Kernels in the file, of all dtypes and architectures: {len(evidence.kernels)}. {_linked(name)}"
        yield "\n".join(f"- {text}" for text in wrong)


def _section(run: Run, album: Album) -> Iterator[str]:
    """The main findings of one run: of every group the first case, and how time and memory grow."""
    yield f"{machine(run)} {_linked(album.prefix)}"
    yield "\n".join(f"- {sentence}" for sentence in sentences(run))
    yield ceilings(run)
    chosen = main_cases(run)
    yield page.speed_chart(chosen, album, "main cases")
    for case, found in chosen.items():
        if found[0].group in TASKS:
            yield f"**{case}**"
            yield tables.speed(run, found, COLUMNS)
    yield from page.memory_charts(chosen, album)
    yield from page.largest_batch(run)
    yield from page.growth(run, album)
    yield tables.not_run(run)


def _linked(name: str) -> str:
    where = f"../{RESULTS.as_posix()}/{name}"
    return f"All figures: [{name}.json]({where}.json), [{name}.csv]({where}.csv)."


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table as CSV, with the columns of all rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue(), encoding="utf-8")


def main(root: Path = ROOT) -> int:
    """Write the pages; return the exit status: 2 where the markers or the results are not as they should be."""
    drawing = figures.available()
    if not drawing:
        sys.stderr.write(f"benchmarks.suite.pages: {figures.NO_CHARTS}\n")
    try:
        update(root, drawing)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks.suite.pages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
