"""Triton's interpreter made quicker, without a change of what it computes.

It spends most of its time on descriptions of values, not on values: every operation builds the type of its result,
that type's name and a tuple of constants for its shape anew. These are built once and kept. An operator between two
types is taken through all of its checks and conversions once; what NumPy was asked at the end of them is noted, and
done at once for the next operands of these types.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ARITHMETIC = ("add", "sub", "mul")
"""Operators whose integers are checked for overflow."""
OPERATORS = (*ARITHMETIC, "truediv", "and", "or", "xor", "gt", "ge", "lt", "le", "eq", "ne")
REFLECTED = tuple(f"r{name}" for name in OPERATORS)


def install(stock: Any) -> None:
    """Let the interpreter of this process keep types, shapes and wrapped functions."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    _compare_types_by_identity_first(core)
    _keep_types(core.block_type, lambda element, shape: (element.name, type(element), _sizes(core, shape)))
    _keep_types(
        core.pointer_type,
        lambda element_ty, address_space=1, const=False: (str(element_ty), type(element_ty), address_space, const),
    )
    _keep_shapes(core)
    _compare_shapes_quickly(core, TritonSemantic)
    _keep_other_element_types(core)
    _keep_numpy_types(stock)
    _build_handles_quickly(stock)
    _add_axes_quickly(stock, TritonSemantic)
    _hand_the_semantic_over(stock)
    _cast_at_once(stock, TritonSemantic)


def _compare_types_by_identity_first(core: Any) -> None:
    equal = core.dtype.__eq__

    def quick_equal(self: Any, other: Any) -> bool:
        if self is other:
            return True
        return bool(self.name == other.name if type(other) is core.dtype is type(self) else equal(self, other))

    core.dtype.__eq__ = quick_equal


def _keep_types(kind: Any, key: Callable[..., Any]) -> None:
    build, kept = kind.__init__, {}

    def find(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        return kept.get(key(*arguments, **keywords)) or object.__new__(cls)

    def build_once(self: Any, *arguments: Any, **keywords: Any) -> None:
        if "name" not in vars(self):
            build(self, *arguments, **keywords)
            kept[key(*arguments, **keywords)] = self

    kind.__new__, kind.__init__ = find, build_once


def _sizes(core: Any, shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape.values if type(shape) is core.tuple else shape)
    if all(type(size) is int for size in sizes):
        return sizes
    return tuple(size.value if isinstance(size, core.constexpr) else size for size in sizes)


def _keep_other_element_types(core: Any) -> None:
    build, kept = core.block_type.with_element_ty, {}

    def find(self: Any, element: Any) -> Any:
        key = id(self), id(element)
        if key not in kept:
            kept[key] = build(self, element), self, element
        return kept[key][0]

    core.block_type.with_element_ty = find


def _keep_shapes(core: Any) -> None:
    build = core.tensor.__init__

    def build_quickly(self: Any, handle: Any, kind: Any) -> None:
        kept = getattr(kind, "kept_shape", None)
        if kept is None:
            build(self, handle, kind)
            kind.kept_shape = self.numel, self.shape
            return
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.numel, self.shape = kept

    core.tensor.__init__ = build_quickly


def _compare_shapes_quickly(core: Any, semantic: Any) -> None:
    kind, broadcast, check = core.tuple, semantic.broadcast_impl_value, semantic.binary_op_type_checking_impl
    equal, get = kind.__eq__, kind.__getitem__

    def quick_equal(self: Any, other: Any) -> Any:
        if type(other) is list and all(type(size) is int for size in other):
            return core.constexpr(self.values == other)
        return core.constexpr(self.values == other.values) if type(other) is kind else equal(self, other)

    def quick_get(self: Any, place: Any) -> Any:
        return self.values[place] if type(place) is int else get(self, place)

    def quick_broadcast(self: Any, left: Any, right: Any) -> Any:
        one, other = left.type, right.type
        if one.is_block() and other.is_block() and one.shape.values == other.shape.values:
            return left, right
        return broadcast(self, left, right)

    def quick_check(self: Any, left: Any, right: Any, *rest: Any, **keywords: Any) -> Any:
        """Operands of one type stay as they are, unless they are pointers or divided."""
        if type(left) is core.tensor is type(right) and left.type is right.type:
            alone = not rest and keywords.keys() <= {"arithmetic_check"}
            if alone and not left.dtype.is_ptr():
                return left, right
        return check(self, left, right, *rest, **keywords)

    kind.__eq__, kind.__getitem__ = quick_equal, quick_get
    semantic.broadcast_impl_value, semantic.binary_op_type_checking_impl = quick_broadcast, quick_check


def _keep_numpy_types(stock: Any) -> None:
    find, kept = stock._get_np_dtype, {}

    def find_once(kind: Any) -> Any:
        if kind.name not in kept:
            kept[kind.name] = find(kind)
        return kept[kind.name]

    stock._get_np_dtype = find_once


def _build_handles_quickly(stock: Any) -> None:
    handle, pointer, widths = stock.TensorHandle, stock.tl.pointer_type, {}

    def build(self: Any, data: Any, dtype: Any, attr: Any = None) -> None:
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
        if isinstance(dtype, pointer):
            return
        if dtype.name not in widths:
            widths[dtype.name] = max(8, dtype.primitive_bitwidth) // 8
        if data.itemsize > widths[dtype.name]:
            self.__post_init__()

    handle.__init__ = build


def _add_axes_quickly(stock: Any, semantic: Any) -> None:
    core, expand, kept = stock.tl.core, semantic.expand_dims, {}

    def expand_data(self: Any, handle: Any, axis: int) -> Any:
        place = (slice(None),) * (axis % (handle.data.ndim + 1)) + (None,)
        return stock.TensorHandle(handle.data[place], handle.dtype.scalar)

    def expand_quickly(self: Any, value: Any, axis: Any) -> Any:
        key = id(value.type), axis
        if type(axis) is not int or not value.type.is_block():
            return expand(self, value, axis)
        if key not in kept:
            kept[key] = expand(self, value, axis).type, value.type
        return core.tensor(self.builder.create_expand_dims(value.handle, axis), kept[key][0])

    stock.InterpreterBuilder.create_expand_dims, semantic.expand_dims = expand_data, expand_quickly


def _hand_the_semantic_over(stock: Any) -> None:
    operators = _Operators(stock)
    semantic = stock.TritonSemantic(stock.interpreter_builder)
    handed: dict[int, tuple[Any, list[tuple[str, Callable[..., Any]]]]] = {}

    def with_semantic(member: Any) -> Callable[..., Any]:
        function = getattr(member, "__wrapped__", member)

        def call(*arguments: Any, **keywords: Any) -> Any:
            keywords["_semantic"] = semantic
            return function(*arguments, **keywords)

        return call

    def members(owner: Any) -> list[tuple[str, Callable[..., Any]]]:
        builtins = [(name, member) for name, member in inspect.getmembers(owner) if stock.tl.core.is_builtin(member)]
        calls = {name: with_semantic(member) for name, member in builtins}
        if owner is stock.tl.tensor:
            quick = {name: call for name, call in calls.items() if name.strip("_") in (*OPERATORS, *REFLECTED)}
            calls |= {name: operators.quick(name, call) for name, call in quick.items()}
            calls["__getitem__"] = indexing(calls["__getitem__"])
        return list(calls.items())

    def indexing(call: Callable[..., Any]) -> Callable[..., Any]:
        def get(value: Any, places: Any) -> Any:
            if type(places) is not tuple or any(place is not None and place != slice(None) for place in places):
                return call(value, places)
            for axis, place in enumerate(places):
                value = semantic.expand_dims(value, axis) if place is None else value
            return value

        return get

    def patch(owner: Any, builder: Any, scope: Any) -> None:
        if id(owner) not in handed:
            handed[id(owner)] = owner, members(owner)
        for name, call in handed[id(owner)][1]:
            scope.set_attr(owner, name, call)

    stock._patch_builtin = patch


@dataclass(frozen=True)
class _Plan:
    """What an operator does with operands of two types.

    Attributes:
        operation: of NumPy; None where it moves a pointer.
        dtype: that both operands are converted to.
        bounds: of the result, where integers are checked for overflow.
        kind: of the handle.
        result: type of the result.
        constant: the second operand, where it is a number.
        reflected: whether the second operand stands first.
        types: of the operands, kept so that their identities stay theirs.
    """

    operation: Any
    dtype: Any
    bounds: tuple[int, int] | None
    kind: Any
    result: Any
    constant: Any
    reflected: bool
    types: tuple[Any, Any]


class _Operators:
    """Operators that note what they do with two types, or with one and a number, and do it at once from then on."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock
        self.asked: list[tuple[Any, Any, Any]] = []
        self.builder, self.tensor = stock.interpreter_builder, stock.tl.core.tensor
        self.handle, self.new = stock.TensorHandle, object.__new__
        ask = stock.InterpreterBuilder.binary_op

        def noting(builder: Any, left: Any, right: Any, operation: Any) -> Any:
            self.asked.append((left, right, operation))
            return ask(builder, left, right, operation)

        stock.InterpreterBuilder.binary_op = noting

    def quick(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, the operator `name`, after the first time by its plan."""
        plans: dict[Any, _Plan | None] = {}
        tensor, constexpr = self.stock.tl.core.tensor, self.stock.tl.core.constexpr

        def operate(left: Any, right: Any) -> Any:
            if type(right) is constexpr:
                right = right.value
            key = (id(left.type), id(right.type)) if type(right) is tensor else (id(left.type), type(right), right)
            plan = plans.get(key)
            if plan is not None:
                return self._do(plan, left, right)
            if key in plans:
                return call(left, right)
            self.asked.clear()
            result = call(left, right)
            plans[key] = self._plan(name, left, right, result)
            return result

        return operate

    def _plan(self, name: str, left: Any, right: Any, result: Any) -> _Plan | None:
        """What was done, where it can be done at once: not with bfloat16, which the interpreter keeps as bits."""
        tl, numeric = self.stock.tl, type(right) is not self.stock.tl.core.tensor
        kinds = [left.dtype] if numeric else [left.dtype, right.dtype]
        types = left.type, None if numeric else right.type
        if name == "__add__" and left.dtype.is_ptr() and not numeric and right.dtype.is_int_signed():
            return _Plan(None, None, None, left.handle.dtype, result.type, None, False, types)
        named = right if numeric and type(right) is float else 1.0
        plain = all(kind.is_standard_floating() or kind.is_int() for kind in kinds)
        if not plain or tl.bfloat16 in kinds or len(self.asked) != 1 or not abs(named) > 0:
            return None
        one, other, operation = self.asked[0]
        kind = one.dtype.scalar
        if kind == tl.bfloat16 or one.data.dtype != other.data.dtype:
            return None
        bare = name.strip("_")
        reflected = bare in REFLECTED
        checked = bare.removeprefix("r") in ARITHMETIC and kind.is_int() and kind.int_bitwidth < 64
        bounds = (kind.get_int_min_value(), kind.get_int_max_value()) if checked else None
        constant = (one if reflected else other).data.reshape(-1)[:1].copy() if numeric else None
        return _Plan(operation, one.data.dtype, bounds, kind, result.type, constant, reflected, types)

    def _do(self, plan: _Plan, left: Any, right: Any) -> Any:
        if plan.operation is None:
            handle = self.builder.create_addptr(left.handle, right.handle)
            return self.tensor(handle, plan.result)
        one, other = left.handle.data, right.handle.data if plan.constant is None else plan.constant
        if one.dtype != plan.dtype:
            one = one.astype(plan.dtype)
        if other.dtype != plan.dtype:
            other = other.astype(plan.dtype)
        if plan.reflected:
            one, other = other, one
        if plan.bounds is None:
            values = plan.operation(one, other)
        else:
            values = plan.operation(one, other, dtype=np.int64)
            least, most = plan.bounds
            if values.size and not least <= values.min() <= values.max() <= most:
                raise OverflowError(f"int{plan.kind.int_bitwidth} overflow in {plan.operation.__name__}")
            values = values.astype(plan.dtype)
        handle = self.new(self.handle)
        handle.data, handle.dtype, handle.attr = values, plan.kind, {}
        return self.tensor(handle, plan.result)


def _cast_at_once(stock: Any, semantic: Any) -> None:
    """A conversion of one step is that step, without another look at the types."""
    tl, cast, kept = stock.tl, semantic.cast, {}
    in_one_step = {
        (source, target)
        for sources, targets in (
            ((tl.int32, tl.int64, tl.float32), (tl.int32, tl.int64, tl.float32)),
            ((tl.float16, tl.bfloat16), (tl.float32,)),
            ((tl.float32,), (tl.float16, tl.bfloat16)),
        )
        for source in sources
        for target in targets
        if source is not target
    }

    def quick_cast(self: Any, value: Any, kind: Any, fp_downcast_rounding: Any = None) -> Any:
        if value.dtype is kind:
            return value
        key = id(value.type), id(kind)
        if fp_downcast_rounding is not None:
            return cast(self, value, kind, fp_downcast_rounding)
        if key in kept:
            result, _, _ = kept[key]
            return tl.core.tensor(self.builder.cast_impl(value.handle, kind), result)
        result = cast(self, value, kind)
        if (value.dtype, kind) in in_one_step:
            kept[key] = result.type, value.type, kind
        return result

    semantic.cast = quick_cast
