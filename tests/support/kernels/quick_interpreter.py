"""Triton's interpreter made quicker, without a change of what it computes.

It spends most of its time on descriptions of values, not on values: every operation builds the type of its result,
that type's name and a tuple of constants for its shape anew. These are built once and kept.
"""

from __future__ import annotations

from typing import Any


def install(stock: Any) -> None:
    """Let the interpreter of this process keep types, shapes and wrapped functions."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    _compare_types_by_identity_first(core)
    _keep_block_types(core)
    _keep_shapes(core)
    _compare_shapes_quickly(core, TritonSemantic)
    _keep_numpy_types(stock)
    _hand_the_semantic_over(stock)
    _cast_to_other_types_alone(TritonSemantic)


def _compare_types_by_identity_first(core: Any) -> None:
    equal = core.dtype.__eq__

    def quick_equal(self: Any, other: Any) -> bool:
        if self is other:
            return True
        return bool(self.name == other.name if type(other) is core.dtype is type(self) else equal(self, other))

    core.dtype.__eq__ = quick_equal


def _keep_block_types(core: Any) -> None:
    kind = core.block_type
    build, kept = kind.__init__, {}

    def key(element: Any, shape: Any) -> Any:
        sizes = tuple(size.value if isinstance(size, core.constexpr) else size for size in shape)
        return element.name, type(element), sizes

    def find(cls: Any, element: Any, shape: Any) -> Any:
        return kept.get(key(element, shape)) or object.__new__(cls)

    def build_once(self: Any, element: Any, shape: Any) -> None:
        if "numel" not in vars(self):
            build(self, element, shape)
            kept[key(element, shape)] = self

    kind.__new__, kind.__init__ = find, build_once


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


def _hand_the_semantic_over(stock: Any) -> None:
    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        semantic = stock.TritonSemantic(builder)

        def call(*arguments: Any, **keywords: Any) -> Any:
            keywords["_semantic"] = semantic
            return member(*arguments, **keywords)

        scope.set_attr(owner, name, call)

    stock._patch_attr = patch


def _cast_to_other_types_alone(semantic: Any) -> None:
    cast = semantic.cast

    def quick_cast(self: Any, value: Any, kind: Any, *rest: Any, **keywords: Any) -> Any:
        return value if value.dtype is kind else cast(self, value, kind, *rest, **keywords)

    semantic.cast = quick_cast
