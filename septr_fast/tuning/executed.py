"""What was counted where compiled kernels were executed on a CPU, beside the report on what they were compiled to.

`make trust` executes the kernels' PTX in passes of few tokens and keeps a row for each pass and kernel: per program
instructions of its warps by unit, passes over the banks of shared memory, sectors of global memory per request.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

COUNTS = Path(__file__).resolve().parents[2] / "docs" / "trust" / "execution-kernels.csv"
"""The rows, in a checkout of the project."""

WIDE = "256"
"""What the names of passes hold whose kernels are those of the default model's widths."""

Row = dict[str, str]


def read(file: Path = COUNTS) -> list[Row]:
    """All rows; none where there is no file."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def of_kernels(rows: Sequence[Row], dtype: str, arch: int, wide: bool) -> dict[str, Row]:
    """One row for each kernel executed in `dtype` (a name of the kernel report) on `arch`, by the kernel's name.

    Of the passes that a kernel was executed in, the first one of the widths asked for, or the first one; its name is
    left without dtype and architecture.
    """
    ending = f", {dtype}, sm_{arch}"
    own = [{**row, "pass": row["pass"][: -len(ending)]} for row in rows if row["pass"].lower().endswith(ending.lower())]
    chosen: dict[str, Row] = {}
    for row in sorted(own, key=lambda row: (WIDE in row["pass"]) is not wide):
        chosen.setdefault(row["kernel"], row)
    return chosen
