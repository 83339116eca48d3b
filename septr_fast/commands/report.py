"""`septr-fast report`: stored results as one page with tables and charts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from septr_fast.report import page
from septr_fast.report.charts import figures
from septr_fast.report.sources import read

LATEST = Path("benchmarks/out/results.json")
"""What is reported where no file is named: the last run of the benchmarks in the current folder."""

HELP = "stored results as a page with tables and charts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help=f"results of the benchmarks, or what `kernels --json` printed (default: {LATEST})",
    )
    parser.add_argument("--out", type=Path, help='default: "report" in the folder of the first file')


def run(files: Sequence[Path], out: Path | None) -> int:
    """Write the page, print its path and return the exit status: 2 where there is nothing to report.

    Args:
        files: of results; empty for the latest.
        out: folder of the page; None for one beside the first file.
    """
    if not files and not LATEST.exists():
        return _refuse(f"no file given, and there is no {LATEST}: run the benchmarks, or name a file of results")
    chosen = files or [LATEST]
    drawing = figures.available()
    try:
        path = page.write(read(chosen), out or chosen[0].parent / "report", drawing)
    except (ValueError, OSError) as error:
        return _refuse(str(error))
    if not drawing:
        sys.stderr.write(f"septr-fast report: {figures.NO_CHARTS}\n")
    sys.stdout.write(f"{path}\n")
    return 0


def _refuse(reason: str) -> int:
    sys.stderr.write(f"septr-fast report: {reason}\n")
    return 2
