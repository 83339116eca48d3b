"""Puts mutants in the place of the functions that they are made of, in this process."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

from triton.runtime import interpreter as stock

from septr_fast import folding
from trust.mutators import Mutant, mutants, planted

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
FOLDING = "folding"


@cache
def functions() -> dict[tuple[str, str], ast.FunctionDef]:
    """The functions that faults are planted in: what runs on a GPU, and the folding; by module and name."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.py"))}
    sources[FOLDING] = inspect.getsource(folding)
    return {
        (module, node.name): node
        for module, source in sources.items()
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and (module == FOLDING or _on_gpu(node))
    }


def _on_gpu(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


@cache
def everything() -> tuple[Mutant, ...]:
    """All mutants of all functions."""
    return tuple(mutant for (module, _), node in functions().items() for mutant in mutants(module, node))


def chosen(count: int) -> list[Mutant]:
    """`count` of all mutants: one of each function, then any, at random by their names.

    So a change of the code changes the choice of its own mutants alone.
    """
    drawn = sorted(everything(), key=lambda mutant: sha256(mutant.name.encode()).digest())
    first: dict[tuple[str, str], Mutant] = {}
    for mutant in drawn:
        first.setdefault((mutant.module, mutant.function), mutant)
    return [*first.values(), *(mutant for mutant in drawn if first[mutant.module, mutant.function] is not mutant)][
        :count
    ]


def target(module: str, name: str) -> Any:
    """The function in use: an interpreted one of a kernel's module, or one of `folding`."""
    owner = folding if module == FOLDING else importlib.import_module(f"septr_fast.kernels.{module}")
    return getattr(owner, name)


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Let the mutant run wherever its function is called."""
    function = target(mutant.module, mutant.function)
    changed = planted(functions()[mutant.module, mutant.function], mutant)
    if isinstance(function, stock.InterpretedFunction):
        function.rewrite()
        source = ast.unparse(changed) + "\n"
        rewritten = function.rewriter._compile_and_exec(function.rewriter._transform_ast(source))
        with mock.patch.dict(function.rewritten_fn, {function.fn: rewritten}):
            yield
        return
    names: dict[str, Any] = {}
    module = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), changed], [])
    exec(compile(ast.fix_missing_locations(module), "mutant", "exec"), dict(function.__globals__), names)
    mutated: FunctionType = names[mutant.function]
    code = function.__code__
    function.__code__ = mutated.__code__
    try:
        yield
    finally:
        function.__code__ = code


@contextmanager
def called() -> Iterator[set[tuple[str, str]]]:
    """The kernels' functions that are called inside, by module and name."""
    seen: set[tuple[str, str]] = set()
    rewrite = stock.InterpretedFunction.rewrite

    def noting(self: Any) -> Any:
        seen.add((self.fn.__module__.rpartition(".")[2], self.fn.__name__))
        return rewrite(self)

    with mock.patch.object(stock.InterpretedFunction, "rewrite", noting):
        yield seen
