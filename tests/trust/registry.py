"""Which parts the corpus has, and what each depends on."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.suite.evidence import ROOT, digest

HERE = Path(__file__).parent
PREPARED = ("support.kernels.interpreter", "support.judging", "support.folding")
"""What every part runs under."""
PROGRAMS = {
    "compilation": ("trust.machine.compiling", "trust.machine.machine_code"),
    "execution": ("support.execution.planting", "septr_fast.tuning.kernel_launches"),
    "security": ("trust.supply.offline",),
}
"""Modules that parts start in processes of their own."""
FILES = {
    "fuzz": ("tests/trust/corpus.json",),
    "mutation": (
        "kernels/*.py",
        "tests/network/test_submodules.py",
        "tests/network/test_surgery.py",
        "tests/algebra/test_folding.py",
        "tests/passes/test_merged_training.py",
    ),
    "security": (
        *(f"{folder}/**/*.py" for folder in ("septr_fast", "kernels", "benchmarks", "examples", "tests")),
        *("setup.py", "pyproject.toml", "Makefile", "constraints.txt", "requirements.txt"),
    ),
}
"""Files that parts read, as patterns."""


def names() -> list[str]:
    """The parts, files of `trust.parts`, in alphabetical order; none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules([str(HERE / "parts")]))


def load(name: str) -> ModuleType:
    """Import the part `name`.

    Raises:
        ValueError: where there is none.
    """
    if name not in names():
        raise ValueError(f"part: expected one of {', '.join(names())}, got {name!r}")
    return importlib.import_module(f"trust.parts.{name}")


def sources(name: str) -> str:
    """The hash of what the part `name` depends on; see `benchmarks.suite.evidence`."""
    files = [file for pattern in FILES.get(name, ()) for file in ROOT.glob(pattern)]
    return digest((f"trust.parts.{name}", *PREPARED, *PROGRAMS.get(name, ())), files)


def unchanged_since(name: str, records: Iterable[Mapping[str, Any]]) -> str | None:
    """The commit at which the long form of the part `name` found nothing wrong in the sources of today; else None."""
    for record in records:
        if record["part"] == name and not record["wrong"] and record.get("sources") == sources(name):
            return str(record["stamp"]["commit"])
    return None


def out_of_date(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The parts without a record, or with one that found something wrong or is of other sources."""
    held = list(records)
    return [name for name in names() if unchanged_since(name, held) is None]
