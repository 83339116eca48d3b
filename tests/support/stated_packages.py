"""A folder that holds some installed packages and nothing else, for a Python that has no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def link(folder: Path, names: Sequence[str]) -> Path:
    """Link the packages `names`, and what they require, into `folder`.

    `python -S` with `PYTHONPATH=folder` finds them, what is registered as a plugin among them, and no other package;
    so do the processes that it starts in the same way.
    """
    for package in _with_requirements(names):
        for place in {file.parts[0] for file in package.files or []}:
            kept = place not in ("..", "__pycache__") and not place.endswith(".pth")
            if kept and not (folder / place).exists():
                (folder / place).symlink_to(str(package.locate_file(place)))
    return folder


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
