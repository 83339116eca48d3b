"""Cases that the fuzzing draws, stored to be tried again; `PYTHONPATH=tests:. python -m trust.corpus` draws them anew.

What hypothesis draws changes with its version. The stored cases do not, and reading them takes no hypothesis. They are
of all levels of `trust.parts.fuzz` and reach each of its categories.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

from trust.fuzzing.cases import Case, ModelCase, OperatorCase, PassCase

FILE = Path(__file__).with_name("corpus.json")

KINDS: dict[str, type[Case]] = {
    "operators on Triton": OperatorCase,
    "passes on Triton": PassCase,
    "models on Triton": ModelCase,
    "passes on PyTorch": PassCase,
    "merged training passes in chunks": PassCase,
    "models on PyTorch": ModelCase,
}
"""What the cases of each level of `trust.parts.fuzz` are."""

COUNTS = {
    "operators on Triton": 140,
    "passes on Triton": 80,
    "models on Triton": 24,
    "passes on PyTorch": 80,
    "merged training passes in chunks": 30,
    "models on PyTorch": 80,
}
"""How many are drawn of each level, before what chance did not bring."""

SEED = 2026

Cases = Mapping[str, Sequence[Case]]


def draw(counts: Mapping[str, int] = COUNTS) -> dict[str, list[Case]]:
    """Cases of every level, all different: drawn by chance, and then one for each category that they do not reach."""
    from trust.outcome import silent
    from trust.parts import fuzz

    def drawn(name: str, level: fuzz.Level, count: int) -> Counter[Case]:
        seen: Counter[Case] = Counter()
        fuzz.search(replace(level, check=lambda case: False), SEED, count, seen, silent, shrinking=False)
        return seen

    found = {name: drawn(name, fuzz.LEVELS[name], count) for name, count in counts.items()}
    for name, categories in fuzz.CATEGORIES.items():
        for category in categories:
            if not fuzz.count_reached(found)[category]:
                found[name] += drawn(name, fuzz.sought(fuzz.LEVELS[name], category), 1)
    return {name: list(cases) for name, cases in found.items()}


def write(cases: Cases, file: Path = FILE) -> None:
    """Store cases: of each level the names of their fields, and their values, a case on a line."""
    levels = []
    for name, own in cases.items():
        names = json.dumps([field.name for field in fields(KINDS[name])])
        rows = ",\n".join(json.dumps(astuple(case)) for case in own)
        levels.append(f'{json.dumps(name)}: {{"fields": {names}, "cases": [\n{rows}\n]}}')
    file.write_text("{\n" + ",\n".join(levels) + "\n}\n", encoding="utf-8")


def read(file: Path = FILE) -> dict[str, list[Case]]:
    """The stored cases of every level; raises `ValueError` where a case has other fields than its kind."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {name: list(_cases(name, level["fields"], level["cases"])) for name, level in stored.items()}


def _cases(level: str, names: list[str], rows: list[list[Any]]) -> Iterator[Case]:
    kind = KINDS[level]
    expected = [field.name for field in fields(kind)]
    if names != expected:
        raise ValueError(f"{level}: expected cases with the fields {expected}, got {names}; draw them again")
    for row in rows:
        yield kind(**{name: _as_it_was(value) for name, value in zip(names, row, strict=True)})


def _as_it_was(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    drawn = draw()
    write(drawn)
    sys.stdout.write(f"{sum(map(len, drawn.values()))} cases in {FILE}\n")
