"""A folder that holds some installed packages and nothing else, for a Python that has no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def link(folder: Path, names: Sequence[str]) -> Path:
    """Link the packages `names`, and what they require, into `folder`.

    `python -S` with `PYTHONPATH=folder` finds them, what is registered as a plugin among them, and no other package;
    so do the processes that it starts in the same way. Bytecode that is kept apart from the packages is shared with
    them.
    """
    for package in _with_requirements(names):
        for place in {file.parts[0] for file in package.files or []}:
            kept = place not in ("..", "__pycache__") and not place.endswith(".pth")
            if kept and not (folder / place).exists():
                original = Path(str(package.locate_file(place)))
                (folder / place).symlink_to(original)
                if original.is_dir() and sys.pycache_prefix:
                    _link_bytecode(folder / place, original, Path(sys.pycache_prefix))
    return folder


def _link_bytecode(linked: Path, original: Path, prefix: Path) -> None:
    """Let bytecode of the package at `linked` be that of `original`."""
    kept, found = (prefix / path.relative_to(path.anchor) for path in (original, linked))
    kept.mkdir(parents=True, exist_ok=True)
    found.parent.mkdir(parents=True, exist_ok=True)
    found.symlink_to(kept)


def _with_requirements(names: Sequence[str]) -> Iterator[Distribution]:
    """The packages, each once; what is required but not installed here is not needed here."""
    wanted, seen = list(names), set()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise
            continue
        yield package
        for requirement in map(Requirement, package.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
