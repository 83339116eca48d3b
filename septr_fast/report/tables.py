"""Markdown tables of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from septr_fast.report.fits import PowerLaw, curves, fit
from septr_fast.report.groups import LARGEST_BATCH, reach
from septr_fast.report.results import Result, Run
from septr_fast.report.summary import model_size
from septr_fast.report.units import duration, quantity, share, significant

SPEED_LEGEND = (
    'Median ± half the interquartile range. Every call of a model is timed right after one of SepTr. "SepTr is": '
    "the model's time over SepTr's, call beside call: the median, with lowest and highest. \"SepTr beside it\": the "
    "median of SepTr's times in those calls, where the file has it; the row of SepTr is of calls without another model "
    "between."
)

USEFUL_LEGEND = "Useful FLOP are the least that are known to give the same result."


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns are aligned in the source; those without any content are left out."""
    content = [[_escaped(cell) for cell in row] for row in rows]
    kept = [column for column in range(len(header)) if any(row[column] for row in content)]
    lines = [[header[column] for column in kept], *([row[column] for column in kept] for row in content)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(kept))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of plain text whose columns stand below one another."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def _optional(value: float | None, words: Callable[[float], str]) -> str:
    return "" if value is None else words(value)


def _bytes(size: float) -> str:
    return quantity(size, "B")


def median(result: Result) -> str:
    """Median and half the interquartile range."""
    spread = (result.upper_quartile - result.lower_quartile) / 2
    return f"{duration(result.seconds)} ± {duration(spread)}"


def ratio(result: Result) -> str:
    """How SepTr compares with this model: "3.67 x as fast (3.45 to 4.63)"."""
    return "" if result.ratio is None else f"{result.ratio:.2f} x as fast{reach(result)}"


def useful_rate(run: Run, result: Result) -> str:
    """Useful arithmetic per second, and what share that is of the ceiling of the same precision."""
    if result.useful_flops is None:
        return ""
    rate = result.useful_flops / result.seconds
    ceiling = run.ceilings.get(result.precision)
    return quantity(rate, "FLOP/s") + (f" ({share(rate / ceiling)})" if ceiling else "")


_SPEED: dict[str, Callable[[Run, Result], str]] = {
    "case": lambda run, result: result.case,
    "model": lambda run, result: result.model,
    "median": lambda run, result: median(result),
    "SepTr beside it": lambda run, result: _optional(result.ours_seconds, duration),
    "SepTr is": lambda run, result: ratio(result),
    "spectrograms/s": lambda run, result: significant(result.samples_per_second),
    "s of audio/s": lambda run, result: _optional(result.audio_per_second, significant),
    "GFLOP": lambda run, result: _optional(result.flops, lambda flops: significant(flops / 1e9)),
    "useful FLOP/s (of the ceiling)": useful_rate,
    "parameters": lambda run, result: _optional(result.parameters, lambda count: quantity(count, "")),
    "kept for backward": lambda run, result: _optional(result.saved_bytes, _bytes),
    "peak memory": lambda run, result: _optional(result.peak_bytes, _bytes),
    "error against float64": lambda run, result: _optional(result.error, "{:.1e}".format),
    "note": lambda run, result: result.note,
}

SHORT = (
    "case",
    "model",
    "median",
    "SepTr beside it",
    "SepTr is",
    "kept for backward",
    "peak memory",
    "error against float64",
)
"""Columns that tell the most."""


def speed(run: Run, results: Iterable[Result], columns: Sequence[str] = tuple(_SPEED)) -> str:
    """One row for each result, in the given order."""
    return markdown(columns, ([_SPEED[column](run, result) for column in columns] for result in results))


def largest_batch(run: Run) -> str:
    """The most spectrograms at a time for each model; empty where nobody asked."""
    results = [result for result in run.results if result.group == LARGEST_BATCH]
    rows = (
        (
            model_size(result),
            result.precision,
            result.model,
            str(result.batch),
            _optional(result.peak_bytes, _bytes),
            significant(result.samples_per_second) if result.seconds else "",
            result.note,
        )
        for result in results
    )
    header = ("shape", "precision", "model", "largest batch", "peak memory", "spectrograms/s", "limit")
    return markdown(header, rows) if results else ""


def growth(run: Run) -> str:
    """Exponents of time and of peak memory; empty without growth curves."""
    rows = [
        (
            curve.axis,
            curve.model,
            f"{curve.measured[0].at:g} to {curve.measured[-1].at:g}",
            _law(fit(curve.seconds)),
            _law(fit(curve.peak_bytes)),
        )
        for curve in curves(run)
    ]
    header = ("along", "model", "sizes", "time grows with power", "peak memory grows with power")
    return markdown(header, rows) if rows else ""


def _law(law: PowerLaw | None) -> str:
    return (
        ""
        if law is None
        else f"{law.exponent:.2f} ({law.points} points, within {max(1, math.ceil(law.deviation * 100))} %)"
    )


def not_run(run: Run) -> str:
    """What could not run; empty where everything did."""
    rows = [(entry.case, entry.model, entry.reason) for entry in run.not_run]
    return markdown(("case", "model", "reason"), rows) if rows else ""
