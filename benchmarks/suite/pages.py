"""Pages of the results kept in benchmarks/results: `python -m benchmarks.suite.pages`.

The README gets one table and one chart of one run. `docs/results.md` gets a summary of every run; its long tables lie
beside the results, as CSV files of the same names. `docs/kernels.md` shows what compiled kernels show without a GPU.
"""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu import figures as gpu_figures
from benchmarks.suite import cases
from septr_fast.report import page, static, tables
from septr_fast.report.charts import figures
from septr_fast.report.charts.figures import Album, palette
from septr_fast.report.groups import main_cases
from septr_fast.report.results import OURS, Result, Run
from septr_fast.report.sources import Sources, read
from septr_fast.report.summary import ceilings, device, is_cpu, machine, model_size, sentences
from septr_fast.report.units import duration
from septr_fast.tuning import executed

ROOT = Path(__file__).resolve().parents[2]
README, PAGE, RESULTS = Path("README.md"), Path("docs/results.md"), Path("benchmarks/results")
"""What is written and where the results lie, below the root."""
KERNELS, COUNTS = Path("docs/kernels.md"), Path("docs/trust/execution-kernels.csv")
"""A page, and the counts of `make trust` that are on it."""
START, END = "<!-- results -->\n", "<!-- end of results -->"
NO_GPU = "On a GPU: not measured yet."
COLUMNS_OF_README = 110
"""The width of its lines."""
FIRST_LOOK = "brief"
"""The setting whose page has no charts: its tables tell, and the README has that of its times."""
ROWS = 8
"""Most rows of the README's table."""
LEFT_OUT = (cases.OURS_COMPILED, cases.VIT_TINY, cases.AST_TINY)
"""Models that are on the page alone: others of the same kind are in the README."""
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
KERNELS_HEAD = """# Kernels, compiled and executed without a GPU

Made by `python -m benchmarks.suite.pages` from what `septr-fast kernels` and `make trust` found; edits by hand are
lost. What kernels do on a GPU: [gpu.md](gpu.md)."""
EXECUTED = """## Counted by executing

One program of a kernel on average, in passes of few tokens that `make trust` executes from the compiled PTX on a CPU:
instructions of its warps by the unit that executes them, passes over the banks of shared memory, and requests for
global memory. Exact for these passes; the kernels are those of the model above where its widths are the pass's."""
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
    if not stored.runs:
        raise ValueError(f"results: expected a run of the benchmarks in {results}, found none")
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
    write_kernels(root)


def write_kernels(root: Path = ROOT) -> None:
    """Write the page of compiled kernels, where some were compiled."""
    file = root / RESULTS / "kernels.json"
    if file.exists():
        (root / KERNELS).write_text(
            _joined([KERNELS_HEAD, *_kernels(static.load(file), root / COUNTS)]) + "\n", "utf-8"
        )


def _kernels(evidence: static.Evidence, counts: Path) -> Iterator[str]:
    """Tables of the default model's kernels as compiled, and of each kernel as executed, where some were."""
    yield static.about(evidence)
    yield static.table(evidence)
    yield static.LEGEND
    yield "\n".join(f"- {text}" for text in static.shortfalls(evidence))
    if counts.exists():
        dtype, arch = evidence.shown
        yield EXECUTED
        chosen = list(executed.of_kernels(executed.read(counts), dtype, arch, wide=True).values())
        columns = ["kernel", *(name for name in (chosen or [{}])[0] if name != "kernel")]
        yield tables.markdown(columns, sorted([row[name] for name in columns] for row in chosen))
        yield f"All passes, dtypes and architectures: [{counts.name}](trust/{counts.name})."


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
    chosen = {case: found for case, found in main_cases(run).items() if found[0].group in TASKS}
    yield textwrap.fill(_origin(run, list(chosen.values())), COLUMNS_OF_README)
    yield _table(list(chosen.values()))
    yield page.speed_chart(chosen, album(name, f"{RESULTS.as_posix()}/"), "main cases")
    everything = f"[All results]({PAGE.as_posix()})."
    yield f"{NO_GPU} {everything}" if is_cpu(run) else everything


def _origin(run: Run, chosen: Sequence[Sequence[Result]]) -> str:
    """Of which models and machine the table is."""
    sizes = {
        found[0].group: f"{model_size(found[0])}, batch {found[0].batch}, {found[0].precision}" for found in chosen
    }
    different = [f"{group}: {size}" for group, size in sizes.items()]
    models = different if len(set(sizes.values())) > 1 else list(sizes.values())[:1]
    threads, version = run.stamp.get("threads"), str(run.stamp.get("versions", {}).get("torch", "")).partition("+")[0]
    where = [device(run), f"{threads} threads" if threads else "", f"PyTorch {version}" if version else ""]
    when = [f"commit {run.stamp.get('commit', 'unknown')}", str(run.stamp.get("date", "unknown"))[:10]]
    text = f"{'; '.join(models)}; {', '.join(part for part in [*where, *when] if part)}."
    return text[:1].upper() + text[1:]


def _table(chosen: Sequence[Sequence[Result]]) -> str:
    """A row for each model, with its time in each task and how many times as long as SepTr beside it that is."""
    header = ["model"]
    models = dict.fromkeys(result.model for found in chosen for result in found if result.model not in LEFT_OUT)
    rows = {model: [model] for model in models}
    for found in chosen:
        header += [found[0].group, "times SepTr's"]
        timed = {result.model: result for result in found}
        for model, row in rows.items():
            row += _cells(timed.get(model))
    return tables.markdown(header, sorted(rows.values(), key=lambda row: row[0] != OURS)[:ROWS])


def _cells(result: Result | None) -> tuple[str, str]:
    if result is None:
        return "", ""
    return duration(result.seconds), "1" if result.model == OURS else f"{result.ratio:.2f}" if result.ratio else ""


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
    yield " ".join(part for part in (machine(run), ceilings(run), _linked(album.prefix)) if part)
    yield "\n".join(f"- {sentence}" for sentence in sentences(run))
    chosen = main_cases(run)
    if run.setting != FIRST_LOOK:
        yield page.speed_chart(chosen, album, "main cases")
    for case, found in chosen.items():
        if found[0].group in TASKS:
            yield f"**{case}**"
            yield tables.speed(run, found, COLUMNS)
    if run.setting != FIRST_LOOK:
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
