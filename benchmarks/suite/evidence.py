"""Evidence by content: a hash of the code that a stored result depends on, kept with the result.

A result belongs to the modules that it names and to all of this project that they import, from wherever in a file. The
hash is of their syntax trees without docstrings, so that neither comments nor words nor layout make a result out of
date; of the versions of PyTorch and Triton that development is pinned to; and of further files that it names. Of a
package's `__init__` only what it defines itself counts: names that it passes on are followed to where they are defined.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "septr_fast": "septr_fast",
    "septr_fast.kernels": "kernels",
    "benchmarks": "benchmarks",
    "training": "examples/training",
    "support": "tests/support",
    "trust": "tests/trust",
}
"""Folders of this project's packages."""
PINNED = ("torch", "triton")
"""Packages whose version counts."""
STORED: dict[str, tuple[str, ...]] = {
    "benchmarks/results/kernels.json": ("septr_fast.commands.kernels", "septr_fast.tuning.kernel_launches"),
    "docs/forecast.json": ("benchmarks.measuring.forecasts",),
    "examples/results/spoken-words-cpu.json": ("training.command",),
}
"""Results whose own files hold no hash, and the modules that they depend on."""
HASHES = Path("benchmarks/results/sources.json")
"""Theirs, by file."""
MEASURED = ("benchmarks.suite.runner", "benchmarks.measuring.roofline")
"""What the results of a benchmark depend on."""


def digest(modules: Iterable[str], files: Iterable[Path] = (), root: Path = ROOT) -> str:
    """The hash of what `modules` depend on, of the contents of `files`, and of the pinned versions.

    Raises:
        ValueError: for a module that is none of this project's.
    """
    found = hashlib.sha256("\n".join(_pins(root)).encode())
    for file in sources(modules, root):
        found.update(f"\n{file.relative_to(root).as_posix()}\n{_code(file)}".encode())
    for file in sorted(set(files)):
        found.update(f"\n{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def sources(modules: Iterable[str], root: Path = ROOT) -> list[Path]:
    """The files of `modules` and of all that they import of this project, sorted."""
    waiting = list(modules)
    unknown = [module for module in waiting if _file(module, root) is None]
    if unknown:
        raise ValueError(f"modules: expected modules of this project, got {', '.join(unknown)}")
    found: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        file = _file(module, root)
        if module in found or file is None:
            continue
        found[module] = file
        waiting += _imported(file, module, root)
    return sorted(set(found.values()))


def _pins(root: Path) -> list[str]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in PINNED]


def _file(module: str, root: Path) -> Path | None:
    """The file of a module or package of this project; None where it is none."""
    package = max((name for name in PACKAGES if f"{module}.".startswith(f"{name}.")), key=len, default=None)
    if package is None:
        return None
    path = root.joinpath(PACKAGES[package], *module.removeprefix(package).strip(".").split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _imported(file: Path, module: str, root: Path) -> Iterator[str]:
    """Modules of this project out of which `file` takes something."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = _absolute(node, module, file)
            yield from (_home(start, name.name, root) for name in node.names)


def _absolute(node: ast.ImportFrom, module: str, file: Path) -> str:
    """The module that `node` imports from, in the file of `module`."""
    if not node.level:
        return node.module or ""
    inside = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*inside[: len(inside) - node.level + 1], *(node.module or "").split(".")]).strip(".")


def _home(module: str, name: str, root: Path) -> str:
    """The module that defines `name` of `module`: itself, a module in it, or where its `__init__` has it from."""
    if _file(f"{module}.{name}", root) is not None:
        return f"{module}.{name}"
    file = _file(module, root)
    if file is None or file.name != "__init__.py":
        return module
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            original = next(one.name for one in node.names if (one.asname or one.name) == name)
            return _home(_absolute(node, module, file), original, root)
    return module


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _code(file: Path) -> str:
    """The syntax tree of `file` without docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree, annotate_fields=False)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def out_of_date(root: Path = ROOT) -> list[str]:
    """The stored results that are of other sources than those that are here."""
    hashes = json.loads((root / HASHES).read_text(encoding="utf-8"))
    found = [file for file, modules in STORED.items() if hashes.get(file) != digest(modules, root=root)]
    runs = sorted((root / HASHES).parent.glob("*.json"))
    contents = {run: json.loads(run.read_text(encoding="utf-8")) for run in runs if run.name != HASHES.name}
    measured = digest(MEASURED, root=root)
    for run, content in contents.items():
        if "stamp" in content and content["stamp"].get("sources") != measured:
            found.append(run.relative_to(root).as_posix())
    return sorted(found)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Say what is out of date, or note that results were made with the sources that are here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.evidence", description=main.__doc__)
    parser.add_argument("--made", nargs="+", choices=STORED, metavar="FILE", help=f"one of {', '.join(STORED)}")
    options = parser.parse_args(arguments)
    if options.made:
        hashes = json.loads((root / HASHES).read_text(encoding="utf-8"))
        hashes |= {file: digest(STORED[file], root=root) for file in options.made}
        (root / HASHES).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    else:
        sys.stdout.write("".join(f"{file}\n" for file in out_of_date(root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
