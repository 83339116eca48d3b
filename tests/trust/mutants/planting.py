"""Puts mutants in the place of the functions that they are made of, in this process."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import sha256
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from unittest import mock

from triton.runtime import interpreter as stock

from septr_fast.algebra import direct, folded, low_rank, merged, mlp, reading
from septr_fast.passes.torch import merged_training
from trust.mutants.mutators import Mutant, Site, mutants, planted

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
PLAIN: dict[str, tuple[ModuleType, ...]] = {
    "folding": (folded, reading, direct, merged, low_rank, mlp),
    "merged_training": (merged_training,),
}
"""Modules in plain PyTorch that faults are planted in, by what they do."""
TELLING = (
    "mask dropped",
    "part of a mask dropped",
    "other dropped",
    "cast dropped",
    "cast narrowed",
    "bound",
    "precision dropped",
)
"""Kinds of faults that are made easily and seen with difficulty.

Another value outside of a mask is none of them: what is finite there meets zeros in two thirds of all places.
"""
TURNS = 4
"""Of a telling kind for one of another."""

NOTE = "_note_call"
"""What a module in plain PyTorch calls it by to whom its functions tell that they are called."""


@cache
def functions() -> dict[Site, ast.FunctionDef]:
    """The functions that faults are planted in: what runs on a GPU, the folding, and the merged pass of training."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.py"))}
    given = [*sources.items(), *((name, inspect.getsource(one)) for name, modules in PLAIN.items() for one in modules)]
    return {
        (module, name): node
        for module, source in given
        for name, node in _functions(ast.parse(source))
        if module in PLAIN or _on_gpu(node)
    }


def _functions(node: ast.Module | ast.ClassDef, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods by name, but for those in which there is nothing to change."""
    for one in node.body:
        if isinstance(one, ast.ClassDef):
            yield from _functions(one, f"{one.name}.")
        if isinstance(one, ast.FunctionDef) and any(mutants("", one)):
            yield f"{inside}{one.name}", one


def _on_gpu(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


@cache
def everything() -> tuple[Mutant, ...]:
    """All mutants of all functions."""
    return tuple(mutant for site in functions() for mutant in of(site))


def of(site: Site) -> Iterator[Mutant]:
    """All mutants of a function."""
    return mutants(site[0], functions()[site], site[1])


def chosen(count: int) -> list[Mutant]:
    """`count` of all mutants: one of each function, then of each kind in turn, of `TELLING` ones several.

    Of a function the kind, of a kind the functions in turn, and of both the mutants are drawn by names. So a change of
    the code changes the choice of its own mutants alone.
    """
    drawn = sorted(everything(), key=lambda mutant: _hash(mutant.name))
    first: dict[Site, Mutant] = {}
    for mutant in sorted(drawn, key=lambda mutant: _hash(*mutant.site, mutant.kind)):
        first.setdefault(mutant.site, mutant)
    _in_turn(drawn, lambda mutant: (*mutant.site, mutant.kind))
    _in_turn(drawn, lambda mutant: mutant.kind, lambda mutant: TURNS if mutant.kind in TELLING else 1)
    return [*first.values(), *(mutant for mutant in drawn if first[mutant.site] is not mutant)][:count]


def _in_turn(
    drawn: list[Mutant], group: Callable[[Mutant], object], most: Callable[[Mutant], int] = lambda _: 1
) -> None:
    """Let groups take turns, each with so many of its mutants at once, in the order that they have."""
    seen: Counter[object] = Counter()
    turn = {}
    for mutant in drawn:
        turn[mutant] = seen[group(mutant)] // most(mutant)
        seen[group(mutant)] += 1
    drawn.sort(key=turn.__getitem__)


def _hash(*words: str) -> bytes:
    return sha256(" ".join(words).encode()).digest()


def target(module: str, name: str) -> Any:
    """The function in use: an interpreted one of a kernel's module, or one in plain PyTorch."""
    if module not in PLAIN:
        return attrgetter(name)(importlib.import_module(f"septr_fast.kernels.{module}"))
    first = name.partition(".")[0]
    owner = next(one for one in PLAIN[module] if getattr(vars(one).get(first), "__module__", "") == one.__name__)
    return attrgetter(name)(owner)


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Let the mutant run wherever its function is called."""
    function = target(*mutant.site)
    changed = planted(functions()[mutant.site], mutant)
    if isinstance(function, stock.InterpretedFunction):
        function.rewrite()
        source = ast.unparse(changed) + "\n"
        rewritten = function.rewriter._compile_and_exec(function.rewriter._transform_ast(source))
        with mock.patch.dict(function.rewritten_fn, {function.fn: rewritten}):
            yield
        return
    with _running(function, _code(changed, function)):
        yield


def _code(changed: ast.FunctionDef, function: FunctionType) -> CodeType:
    """What `function` runs once it is `changed`."""
    names: dict[str, Any] = {}
    module = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), changed], [])
    exec(compile(ast.fix_missing_locations(module), "mutant", "exec"), dict(function.__globals__), names)
    code: CodeType = names[changed.name].__code__
    return code


@contextmanager
def _running(function: FunctionType, code: CodeType) -> Iterator[None]:
    before = function.__code__
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = before


@cache
def _noting(site: Site) -> CodeType:
    """What a function in plain PyTorch runs to note its call by `NOTE`."""
    noting = copy.deepcopy(functions()[site])
    noting.decorator_list = []
    noting.body.insert(0, ast.parse(f"{NOTE}({site!r})").body[0])
    return _code(noting, target(*site))


@contextmanager
def called() -> Iterator[set[Site]]:
    """Those of `functions` that are called inside."""
    seen: set[Site] = set()
    rewrite = stock.InterpretedFunction.rewrite

    def noting(self: Any) -> Any:
        seen.add((self.fn.__module__.rpartition(".")[2], self.fn.__name__))
        return rewrite(self)

    with ExitStack() as changes:
        changes.enter_context(mock.patch.object(stock.InterpretedFunction, "rewrite", noting))
        for module in chain(*PLAIN.values()):
            changes.enter_context(mock.patch.object(module, NOTE, seen.add, create=True))
        for site in functions():
            if site[0] in PLAIN:
                changes.enter_context(_running(target(*site), _noting(site)))
        yield seen
