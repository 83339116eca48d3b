"""Results as a table and as a chart."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import BASELINE
from benchmarks.stamp import commit

LEGEND = (
    "median ± half the interquartile range; 'faster' is the reference's time over the model's, each call timed "
    "beside a call of the reference: median, lowest and highest"
)
_COLORS = {BASELINE: "#9aa5b1", "SepTr": "#0b6e4f", "SepTr, recomputing": "#6fb98f"}


@dataclass(frozen=True)
class Result:
    """One model's figures in one case.

    Attributes:
        case: name of the case.
        model: name of the model.
        seconds: median time of one call.
        spread: interquartile range of the times, in seconds.
        rounds: calls timed.
        ratio: the baseline's time over this one's, call beside call; the median.
        lowest_ratio: the lowest of those ratios.
        highest_ratio: the highest.
        gflop: work of a call, from counted matrix products.
        saved_mb: megabytes alive after the forward pass of a training step, parameters left out; None for inference.
        error: largest error of the logits against float64.
        error_ratio: that error over the baseline's.
    """

    case: str
    model: str
    seconds: float
    spread: float
    rounds: int
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    gflop: float
    saved_mb: float | None
    error: float
    error_ratio: float


def table(results: list[Result]) -> str:
    """A Markdown table, one row for each result, in the given order."""
    header = ("task", "model", "median", "faster", "GFLOP", "kept for backward", "error against float64")
    rows = [
        (
            result.case,
            result.model,
            f"{_duration(result.seconds)} ± {_duration(result.spread / 2)}",
            "" if result.model == BASELINE else f"{result.ratio:.2f} x ({_range(result)})",
            f"{result.gflop:.3g}",
            "" if result.saved_mb is None else f"{result.saved_mb:.4g} MB",
            f"{result.error:.1e}",
        )
        for result in results
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, tuple("-" * width for width in widths), *rows)
    ]
    return "\n".join(lines)


def _range(result: Result) -> str:
    return f"{result.lowest_ratio:.2f} to {result.highest_ratio:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def chart(results: list[Result], path: Path) -> None:
    """Draw time, work and memory as shares of the baseline to the PNG file `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    cases = list(dict.fromkeys(result.case for result in results))
    by_place = {(result.case, result.model): result for result in results}
    panels = [("time", "seconds"), ("matrix arithmetic", "gflop"), ("memory kept for backward", "saved_mb")]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 1.2 + 1.1 * len(cases)), sharey=True)
    models = [model for model in _COLORS if any(result.model == model for result in results)]
    height = 0.8 / len(models)
    for axis, (title, attribute) in zip(axes, panels, strict=True):
        for index, case in enumerate(cases):
            base = getattr(by_place[case, BASELINE], attribute)
            for offset, model in enumerate(models):
                result = by_place.get((case, model))
                if result is None or base is None:
                    continue
                value = getattr(result, attribute)
                share = 1 / result.ratio if attribute == "seconds" else value / base
                place = index + (offset - (len(models) - 1) / 2) * height
                axis.barh(place, share, height * 0.92, color=_COLORS[model])
                axis.text(share + 0.015, place, _label(value, attribute), va="center", fontsize=8)
        axis.set_title(f"{title}, reference = 1", fontsize=10)
        axis.set_xlim(0, 1.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(cases)), cases, fontsize=9)
    axes[0].invert_yaxis()
    bars = [Patch(color=_COLORS[model]) for model in models]
    figure.legend(bars, models, loc="lower center", ncol=len(models), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _label(value: float, attribute: str) -> str:
    if attribute == "seconds":
        return _duration(value)
    return f"{value:.3g} GFLOP" if attribute == "gflop" else f"{value:.0f} MB"


def machine() -> dict[str, Any]:
    """What the results were measured on: processor, threads, versions, commit and date."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        import cpuinfo
    except ImportError:
        return platform.processor() or platform.machine()
    return str(cpuinfo.get_cpu_info().get("brand_raw", platform.machine()))


def store(results: list[Result], path: Path, **about: Any) -> None:
    """Write the results as JSON, stamped with the machine and with `about`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), **about, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """The stamp and the results that `store` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content, [Result(**result) for result in content.pop("results")]


def section(path: Path) -> str:
    """The README's part on one file of results: the machine, and the table."""
    about, results = load(path)
    where = about["machine"]
    return (
        f"Measured on {where['processor']}, {where['threads']} threads, torch {where['torch']}, float32, "
        f"{where['date']}, commit {where['commit']} ([figures]({path.as_posix()})): {LEGEND}.\n\n{table(results)}"
    )


def update(readme: Path, path: Path) -> None:
    """Write `section(path)` between the markers in `readme`; raise `ValueError` if they are not there."""
    start, end = "<!-- results -->\n", "<!-- end of results -->"
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"readme: expected the markers {start!r} and {end!r} in {readme}")
    readme.write_text(before + start + section(path) + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    update(Path("README.md"), Path("benchmarks/results/cpu.json"))
