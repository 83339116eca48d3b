"""The house is in order: few files to a room, none of them long, and a word on every package."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("septr_fast", "kernels", "benchmarks", "examples", "tests")
LARGE = ("kernels",)
"""Rooms that may hold more files than others."""
PACKAGES = ("septr_fast", "benchmarks", "examples/training", "tests/trust")
FILES = 12
"""Most of a room, besides the `__init__.py` that says what it is."""
LINES = 400
"""Most of a file."""


def files() -> list[Path]:
    """All files of Python, from the root."""
    return sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def test_no_room_is_crowded() -> None:
    rooms = Counter(path.parent.as_posix() for path in files() if path.name != "__init__.py")
    assert {room: count for room, count in rooms.items() if count > FILES and room not in LARGE} == {}


def test_no_file_is_long() -> None:
    lengths = {path.as_posix(): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_every_package_says_what_it_is() -> None:
    """The tests of the corpus are no package: pytest finds them."""
    folders = {path.parent for path in files() if path.as_posix().startswith(tuple(f"{name}/" for name in PACKAGES))}
    folders.discard(Path("tests/trust/tests"))
    assert len(folders) > len(PACKAGES)
    silent = []
    for folder in sorted(folders):
        file = ROOT / folder / "__init__.py"
        if not file.exists() or not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))):
            silent.append(folder.as_posix())
    assert silent == []
