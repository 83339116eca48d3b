"""Which parts the corpus has."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

NAMED = re.compile(r"^NAME\b.* = ", re.MULTILINE)


def names() -> list[str]:
    """The modules of this package that are parts, in alphabetical order; none is imported."""
    folder = Path(__file__).parent
    found = [module.name for module in pkgutil.iter_modules([str(folder)])]
    return sorted(name for name in found if NAMED.search((folder / f"{name}.py").read_text(encoding="utf-8")))


def load(name: str) -> ModuleType:
    """Import the part `name`.

    Raises:
        ValueError: where there is none.
    """
    if name not in names():
        raise ValueError(f"part: expected one of {', '.join(names())}, got {name!r}")
    return importlib.import_module(f"trust.{name}")
