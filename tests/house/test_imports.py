"""Imports point one way: the contracts in pyproject.toml, and what the tool that checks them cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from septr_fast.passes import backend

ROOT = Path(__file__).resolve().parents[2]
FACADE = ("septr_fast", "__init__.py")
"""It imports what users import from it; nothing of the package imports from it."""


def test_contracts_are_kept() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 4 kept, 0 broken." in done.stdout


def from_facade(text: str) -> list[str]:
    """What a source takes from the package as a whole."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "septr_fast" and not node.level:
            found += [name.name for name in node.names]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name == "septr_fast"]
    return found


def test_nothing_inside_imports_the_facade() -> None:
    """Rooms of their own are named; `from septr_fast import model` is one of these."""
    files = [file for file in (ROOT / "septr_fast").rglob("*.py") if file.parts[-2:] != FACADE]
    names = {file.stem for file in (ROOT / "septr_fast").glob("*.py")} | {"kernels"}
    wrong = {str(file): set(from_facade(file.read_text(encoding="utf-8"))) - names for file in files}
    assert {file: found for file, found in wrong.items() if found} == {}


@pytest.mark.parametrize("line", ["from septr_fast import SepTr", "import septr_fast"])
def test_an_import_of_the_facade_is_seen(line: str) -> None:
    assert from_facade(f"def late():\n    {line}\n")


def test_an_import_brings_neither_the_compiler_nor_what_is_optional() -> None:
    """They take seconds; torch itself imports the compiler when an optimizer is built."""
    code = "import sys, septr_fast; print(*sorted({name.partition('.')[0] for name in sys.modules} | {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert "septr_fast.model" in found
    assert not found & {"torch._dynamo", "torch._inductor", "triton", "matplotlib", "soundfile", "transformers"}


def test_the_mark_on_what_names_a_backend_is_that_of_the_decorator() -> None:
    """`torch.compiler.assume_constant_result`, which imports the compiler, sets what is set without it."""

    def decorated() -> None: ...

    marked = vars(torch.compiler.assume_constant_result(decorated))
    assert marked.items() <= vars(backend.why_not_triton).items()
    assert marked


def test_kernels_import_none_of_the_package() -> None:
    for file in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else [module or ""]
            assert not any(name.partition(".")[0] == "septr_fast" for name in names), f"{file.name}: {names}"
