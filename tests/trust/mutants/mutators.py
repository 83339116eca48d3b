"""Small faults to plant in the source of a function: what a slip of the author's hand would be in kernels."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Change = tuple[str, ast.AST | None]
"""The kind of a fault, and what takes the place of a node; None where the node, a statement, is left out."""

Site = tuple[str, str]
"""A module and a function in it, a method with its class."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.FloorDiv: ast.Mod,
}
FUNCTIONS = {"maximum": "minimum", "max": "min", "sum": "max", "exp2": "exp"}
REDUCTIONS = {"sum": 2, "max": 2, "sum_of_products": 3}
"""With the axis as the last of so many arguments."""
CAST_DROPPED = "cast dropped"
NEUTRAL = ("disable_licm", "num_stages", "warp_specialize")
"""Arguments that change the speed alone."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        module: the file's name without its suffix.
        function: that holds it, a method with its class.
        kind: of the fault.
        before: the source of what is changed.
        after: of what stands there instead.
        number: counts faults that read the same in the function, from 0.
        place: of the node, and which of its changes.
    """

    module: str
    function: str
    kind: str
    before: str
    after: str
    number: int
    place: tuple[int, int]

    @property
    def site(self) -> Site:
        """Module and function."""
        return self.module, self.function

    @property
    def name(self) -> str:
        """The same as long as the changed words are."""
        again = f" ({self.number + 1})" if self.number else ""
        return f"{self.module}.{self.function}: {self.kind}: {self.before} -> {self.after}{again}"


def mutants(module: str, function: ast.FunctionDef, name: str = "") -> Iterator[Mutant]:
    """All faults that the operators know to plant in `function`; decorators, annotations and texts are left alone.

    Args:
        module: that holds it.
        function: to change.
        name: of a method, with its class.
    """
    plain = _body(function)
    seen: Counter[tuple[str, str, str]] = Counter()
    for index, (parent, _, node) in enumerate(_places(plain)):
        for number, (kind, replacement) in enumerate(_changes(parent, node, _earlier(plain, node))):
            before, after = _text(node), "" if replacement is None else _text(replacement)
            key = kind, before, after
            yield Mutant(module, name or function.name, kind, before, after, seen[key], (index, number))
            seen[key] += 1


def planted(function: ast.FunctionDef, mutant: Mutant) -> ast.FunctionDef:
    """`function`, without decorators, with one of its `mutants` in it."""
    changed, (index, number) = _body(function), mutant.place
    parent, (name, position), node = _places(changed)[index]
    replacement = list(_changes(parent, node, _earlier(changed, node)))[number][1]
    if position is None:
        setattr(parent, name, replacement)
    else:
        getattr(parent, name)[position] = ast.Pass() if replacement is None else replacement
    return ast.fix_missing_locations(changed)


def _body(function: ast.FunctionDef) -> ast.FunctionDef:
    """A copy without decorators and the text at its start."""
    plain = copy.deepcopy(function)
    plain.decorator_list = []
    if ast.get_docstring(plain) is not None:
        plain.body = plain.body[1:]
    return plain


def _places(function: ast.FunctionDef) -> list[tuple[ast.AST, tuple[str, int | None], ast.AST]]:
    """Every node inside with its parent and where it stands there, in a fixed order."""
    found = []
    waiting: list[ast.AST] = [function]
    while waiting:
        parent = waiting.pop(0)
        for name, value in ast.iter_fields(parent):
            if name in ("annotation", "returns", "args") and not isinstance(parent, ast.Call):
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST):
                    found.append((parent, (name, index), node))
                    waiting.append(node)
    return found


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())


def _earlier(function: ast.FunctionDef, node: ast.AST) -> set[str]:
    """Names that have a value before the statement `node`; only asked for statements."""
    if not isinstance(node, ast.Assign):
        return set()
    known = {argument.arg for argument in function.args.args}
    for one in ast.walk(function):
        if isinstance(one, ast.Assign) and one.lineno < node.lineno:
            known |= {name.id for target in one.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return known


def _changes(parent: ast.AST, node: ast.AST, earlier: set[str]) -> Iterator[Change]:
    for operator in OPERATORS:
        yield from operator(parent, node, earlier)


def _masks(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    """Loads and stores without their mask, or with another value outside of it."""
    if not isinstance(node, ast.Call) or _called(node) not in ("load", "store"):
        return
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if "mask" in keywords:
        rest = [keyword for keyword in node.keywords if keyword.arg not in ("mask", "other")]
        yield "mask dropped", ast.Call(node.func, node.args, rest)
    if isinstance(keywords.get("other"), ast.Constant):
        others = [keyword for keyword in node.keywords if keyword.arg != "other"]
        changed = ast.Constant(0.0 if keywords["other"].value == 1.0 else 1.0)
        yield "other changed", ast.Call(node.func, node.args, [*others, ast.keyword("other", changed)])
        yield "other dropped", ast.Call(node.func, node.args, others)


def _mask_parts(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield "part of a mask dropped", node.left
        yield "part of a mask dropped", node.right


def _casts(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    """Values without a cast, or with one to float16 for float32, which arithmetic with float32 makes of them anyway.

    What is stored is left alone: a store converts to the tensor's dtype by itself.
    """
    stored = isinstance(parent, ast.Call) and _called(parent) == "store"
    if not isinstance(node, ast.Call) or stored:
        return
    if ast.unparse(node.func) == "tl.cast":
        yield CAST_DROPPED, node.args[0]
    if _called(node) != "to":
        return
    if ast.unparse(node.args[0]) == "tl.float32":
        yield "cast narrowed", ast.Call(node.func, [ast.parse("tl.float16", mode="eval").body], node.keywords)
    else:
        yield CAST_DROPPED, node.func.value  # type: ignore[attr-defined]


def _comparisons(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]()
        kind = "bound" if isinstance(other, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) else "condition"
        yield kind, ast.Compare(node.left, [other], node.comparators)


def _conditions(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if isinstance(parent, (ast.If, ast.IfExp)) and node is parent.test and not isinstance(node, ast.Compare):
        yield "condition", ast.UnaryOp(ast.Not(), node)
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "condition", ast.BoolOp(other, node.values)


def _axes(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    """Another axis: of a broadcast, of a reduction, of a stride, of a shape."""
    if isinstance(node, ast.Subscript):
        index = node.slice
        if isinstance(index, ast.Tuple) and any(isinstance(x, ast.Constant) and x.value is None for x in index.elts):
            yield "axis", ast.Subscript(node.value, ast.Tuple(index.elts[::-1], ast.Load()), node.ctx)
        if _is_integer(index):
            number = index.value  # type: ignore[attr-defined]
            yield "axis", ast.Subscript(node.value, ast.Constant(number - 1 if number else 1), node.ctx)
    if isinstance(node, ast.Call) and len(node.args) == REDUCTIONS.get(_called(node)) and _is_integer(node.args[-1]):
        axis = ast.Constant(1 - node.args[-1].value)  # type: ignore[attr-defined]
        yield "axis", ast.Call(node.func, [*node.args[:-1], axis], node.keywords)


def _integers(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if _is_integer(node) and not isinstance(parent, ast.Subscript) and not _is_axis(parent, node):
        yield "off by one", ast.Constant(node.value + 1)  # type: ignore[attr-defined]
    if isinstance(node, ast.Constant) and isinstance(node.value, float) and not _is_other(parent):
        yield "constant", ast.Constant(2 * node.value if node.value else 1.0)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign dropped", node.operand


def _slices(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if isinstance(node, ast.Slice) and (node.lower is None) != (node.upper is None):
        yield "slice", ast.Slice(node.upper, node.lower, node.step)


def _arithmetic(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if not isinstance(node, (ast.BinOp, ast.AugAssign)):
        return
    if isinstance(node.op, ast.MatMult) and isinstance(node, ast.BinOp):
        yield "operands swapped", ast.BinOp(node.right, node.op, node.left)
    if type(node.op) not in ARITHMETIC:
        return
    other = ARITHMETIC[type(node.op)]()
    if isinstance(node, ast.BinOp):
        yield "arithmetic", ast.BinOp(node.left, other, node.right)
    else:
        yield "arithmetic", ast.AugAssign(node.target, other, node.value)


def _loops(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    """A loop without its first round or its last."""
    if not isinstance(parent, ast.For) or node is not parent.iter or not isinstance(node, ast.Call):
        return
    if _called(node) in ("range", "static_range"):
        bounds = node.args if len(node.args) > 1 else [ast.Constant(0), *node.args]
        start, stop, *step = bounds
        width = step[0] if step else ast.Constant(1)
        later, sooner = ast.BinOp(start, ast.Add(), width), ast.BinOp(stop, ast.Sub(), width)
        yield "first round dropped", ast.Call(node.func, [later, stop, *step], node.keywords)
        yield "last round dropped", ast.Call(node.func, [start, sooner, *step], node.keywords)


def _statements(parent: ast.AST, node: ast.AST, earlier: set[str]) -> Iterator[Change]:
    """What can be left out without an unknown name: calls, changes in place, second values of a name."""
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "statement dropped", None
    if isinstance(node, ast.Assign):
        names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        if names <= earlier:
            yield "statement dropped", None


def _calls(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    """Another function, or the same without an argument."""
    if not isinstance(node, ast.Call):
        return
    name = _called(node)
    if name in FUNCTIONS and isinstance(node.func, ast.Attribute):
        yield (
            "function",
            ast.Call(ast.Attribute(node.func.value, FUNCTIONS[name], ast.Load()), node.args, node.keywords),
        )
    if name in ("trans", "transpose", "t"):
        value = node.args[0] if name == "trans" else node.func.value  # type: ignore[attr-defined]
        yield "not transposed", value
    if name == "where":
        yield "branch of a choice dropped", node.args[1]
        yield "branch of a choice dropped", node.args[2]
    if name == "dot":
        if len(node.args) == 3:
            yield "accumulator dropped", ast.Call(node.func, node.args[:2], node.keywords)
        rest = [keyword for keyword in node.keywords if keyword.arg != "input_precision"]
        if len(rest) < len(node.keywords):
            triton_s = ast.keyword("input_precision", ast.Constant("tf32"))
            yield "precision dropped", ast.Call(node.func, node.args, [*rest, triton_s])


def _transposes(parent: ast.AST, node: ast.AST, _: set[str]) -> Iterator[Change]:
    if isinstance(node, ast.Attribute) and node.attr == "T":
        yield "not transposed", node.value


OPERATORS: tuple[Callable[[ast.AST, ast.AST, set[str]], Iterator[Change]], ...] = (
    _masks,
    _mask_parts,
    _casts,
    _comparisons,
    _conditions,
    _axes,
    _integers,
    _slices,
    _arithmetic,
    _loops,
    _statements,
    _calls,
    _transposes,
)


def _called(node: ast.Call) -> str:
    """The last word of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_integer(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _is_other(parent: ast.AST) -> bool:
    """Whether a number stands for what is outside of a mask, for which there is an operator."""
    return isinstance(parent, ast.keyword) and parent.arg == "other"


def _is_axis(parent: ast.AST, node: ast.AST) -> bool:
    """Whether an integer is the axis of a reduction, which has an operator of its own, or of the speed alone."""
    if isinstance(parent, ast.keyword):
        return parent.arg in NEUTRAL
    if not isinstance(parent, ast.Call) or _called(parent) not in REDUCTIONS:
        return False
    return node in parent.args[REDUCTIONS[_called(parent)] - 1 :]
