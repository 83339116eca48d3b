"""Files that a report is made of: runs of the benchmarks, and what compiled kernels show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from septr_fast.report import static
from septr_fast.report.results import Run, load
from septr_fast.report.static import Evidence


@dataclass(frozen=True)
class Sources:
    """What was read, under names that are unique: those of the files."""

    runs: dict[str, Run]
    compiled: dict[str, Evidence]


def read(files: Iterable[Path]) -> Sources:
    """Read results and the output of `kernels --json`; raise `ValueError`, naming the file, for anything else."""
    found = Sources({}, {})
    for path in files:
        content = _read(path)
        if isinstance(content, Run):
            found.runs[_unused(path.stem, found.runs)] = content
        else:
            found.compiled[_unused(path.stem, found.compiled)] = content
    return found


def _read(path: Path) -> Run | Evidence:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    return static.load(path) if static.recognises(content) else load(path)


def _unused(name: str, names: Iterable[str]) -> str:
    """`name`, or with the lowest number that makes it different from `names`."""
    taken, number, found = set(names), 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
