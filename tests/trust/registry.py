"""Which parts the corpus has."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """The parts, files of `trust.parts`, in alphabetical order; none is imported."""
    folder = Path(__file__).parent / "parts"
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def load(name: str) -> ModuleType:
    """Import the part `name`.

    Raises:
        ValueError: where there is none.
    """
    if name not in names():
        raise ValueError(f"part: expected one of {', '.join(names())}, got {name!r}")
    return importlib.import_module(f"trust.parts.{name}")
