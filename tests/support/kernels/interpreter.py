"""Triton's interpreter made faithful to a GPU, or loud where it cannot be.

The interpreter keeps bfloat16 as bit patterns of 16-bit integers: its casts truncate, its arithmetic and its
products work on the patterns. It computes TF32 products in float32, gives zeros where a masked load leaves
values undefined, lets int32 wrap, and with NumPy 2.4 no argument can bound a loop. Its products are summed up in an
order that depends on the processor and on how an operand lies in memory: scores differ between the passes, which no
GPU does. `install` mends each, and `test_interpreter.py` says when the stock interpreter no longer needs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
from support.kernels import quick_interpreter

MOVES_BITS = {
    *("load", "store", "masked_load", "masked_store", "tensor_pointer_load", "tensor_pointer_store"),
    *("descriptor_load", "descriptor_store", "descriptor_gather", "descriptor_scatter"),
    *("fp_ext", "fp_trunc", "fp_to_fp", "fp_to_si", "fp_to_ui", "bitcast", "select", "print", "dot"),
    *("reshape", "trans", "expand_dims", "broadcast", "cat", "join", "split", "splat", "unsplat", "gather"),
}
"""The interpreter's operations that may take bfloat16: they move values, convert them, or are mended."""

POISON_BYTE = 0x5A
"""What every byte of an integer holds where a load leaves it undefined."""


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16 bit patterns (uint16), exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: np.ndarray, *, truncate: bool = False) -> np.ndarray:
    """Bit patterns (uint16) of float32 values rounded to the nearest bfloat16, ties to even, or towards zero."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(np.shape(values))
    half = np.uint32(0) if truncate else np.uint32(0x7FFF) + ((bits >> 16) & 1)
    with np.errstate(over="ignore"):
        rounded = (bits + half) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def cut_to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values without the 13 last bits, as tensor cores read them in TF32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(np.shape(values))
    return np.where(np.isnan(values), values, (bits & np.uint32(0xFFFFE000)).view(np.float32))


def product_in_turn(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`left @ right` in float32, each value's terms added one after another, on every processor."""
    left, right = (np.ascontiguousarray(x, dtype=np.float32) for x in (left, right))
    return np.einsum("...mk,...kn->...mn", left, right)


def install() -> None:
    """Mend the interpreter of this process, once; nothing happens where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter as stock

    if getattr(stock.InterpreterBuilder, "is_mended", False):
        return
    stock.InterpreterBuilder.is_mended = True
    _refuse_bfloat16_arithmetic(stock)
    _mend_casts(stock)
    _mend_products(stock)
    _poison_undefined_values(stock)
    _check_overflow(stock)
    _let_values_bound_loops(stock)
    _patch_once_a_launch(stock)
    quick_interpreter.install(stock)


def _refuse_bfloat16_arithmetic(stock: Any) -> None:
    import triton.language as tl

    handle, bfloat16 = stock.TensorHandle, tl.bfloat16.name

    def refuse(name: str) -> None:
        raise TypeError(f"{name} on bfloat16, which the interpreter computes on bit patterns: convert to float32 first")

    def guarded(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(operation)
        def checked(self: Any, *arguments: Any, **keywords: Any) -> Any:
            for argument in (*arguments, *keywords.values()) if keywords else arguments:
                if type(argument) is handle and argument.dtype.scalar.name == bfloat16:
                    refuse(name)
            return operation(self, *arguments, **keywords)

        return checked

    builder = stock.InterpreterBuilder
    for attribute, operation in list(vars(builder).items()):
        name = attribute.removeprefix("create_")
        if name != attribute and name not in MOVES_BITS:
            setattr(builder, attribute, guarded(name, operation))

    apply = stock.ReduceScanOpInterface.apply

    def checked_apply(self: Any, values: Any) -> Any:
        for value in values if isinstance(values, tuple) else (values,):
            if value.dtype == tl.bfloat16:
                refuse("a reduction or scan")
        return apply(self, values)

    stock.ReduceScanOpInterface.apply = checked_apply


def _mend_casts(stock: Any) -> None:
    import triton.language as tl

    builder = stock.InterpreterBuilder
    cast, convert = builder.cast_impl, builder.create_fp_to_fp

    def faithful_cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.bfloat16:
            values = stock.TensorHandle(bfloat16_to_float32(source.data), tl.float32)
            return values if target.scalar == tl.float32 else cast(self, values, target)
        if target.scalar != tl.bfloat16:
            return cast(self, source, target)
        if source.dtype.scalar == tl.float64:
            raise TypeError("float64 is not converted to bfloat16 on a GPU: convert to float32 first")
        return stock.TensorHandle(float32_to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)

    def faithful_convert(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        types = {source.dtype.scalar, target.scalar}
        if tl.bfloat16 not in types:
            return convert(self, source, target, rounding)
        if rounding in (None, stock._ir.ROUNDING_MODE.RTNE) and types <= {tl.bfloat16, tl.float16, tl.float32}:
            return faithful_cast(self, source, target)
        if rounding == stock._ir.ROUNDING_MODE.RTZ and source.dtype.scalar == tl.float32:
            return stock.TensorHandle(float32_to_bfloat16(source.data, truncate=True), tl.bfloat16)
        raise TypeError(f"{source.dtype} to {target} with rounding {rounding}: the interpreter is wrong for it")

    def get_bf16(self: Any, value: float) -> Any:
        return faithful_cast(self, self.get_fp32(value), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp, builder.get_bf16 = faithful_cast, faithful_convert, get_bf16


def _mend_products(stock: Any) -> None:
    import triton.language as tl

    builder = stock.InterpreterBuilder
    dot = builder.create_dot

    def operand(handle: Any, precision: Any) -> Any:
        kind = handle.dtype.scalar
        if kind == tl.bfloat16:
            return stock.TensorHandle(bfloat16_to_float32(handle.data), tl.float32)
        if kind == tl.float32 and precision == stock._ir.INPUT_PRECISION.TF32:
            return stock.TensorHandle(cut_to_tf32(handle.data), tl.float32)
        return handle

    def faithful_dot(self: Any, a: Any, b: Any, accumulator: Any, precision: Any, *rest: Any) -> Any:
        a, b = operand(a, precision), operand(b, precision)
        if accumulator.data.dtype == np.float32 and a.data.dtype.itemsize > 1 < b.data.dtype.itemsize:
            return stock.TensorHandle(product_in_turn(a.data, b.data) + accumulator.data, accumulator.dtype.scalar)
        return dot(self, a, b, accumulator, precision, *rest)

    builder.create_dot = faithful_dot


def _poison_undefined_values(stock: Any) -> None:
    import triton.language as tl
    from triton.language.semantic import TritonSemantic

    builder = stock.InterpreterBuilder
    masked_load, load = builder.create_masked_load, TritonSemantic.load

    def poison(kind: Any) -> np.ndarray:
        dtype = stock._get_np_dtype(kind)
        if kind == tl.bfloat16:
            return np.array(0x7FC0, dtype)
        if kind.is_floating():
            return np.array(0x7F, dtype) if dtype == np.uint8 else np.array(np.nan, dtype)
        return np.frombuffer(bytes([POISON_BYTE]) * dtype.itemsize, np.uint8).view(dtype)[0]

    # A single value's `other` of zero is false to the interpreter, which then passes none.
    other_is_given = False

    def noting_load(self: Any, pointer: Any, mask: Any, other: Any, *rest: Any, **keywords: Any) -> Any:
        nonlocal other_is_given
        other_is_given = other is not None
        try:
            return load(self, pointer, mask, other, *rest, **keywords)
        finally:
            other_is_given = False

    def poisoned_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **keywords: Any) -> Any:
        if other is None and not other_is_given and not np.all(mask.data):
            kind = pointers.get_element_ty()
            values = np.broadcast_to(poison(kind), pointers.data.shape)
            other = stock.TensorHandle(np.ascontiguousarray(values), kind)
        return masked_load(self, pointers, mask, other, *rest, **keywords)

    TritonSemantic.load, builder.create_masked_load = noting_load, poisoned_load


def _check_overflow(stock: Any) -> None:
    from triton.language.semantic import TritonSemantic

    # Asserts of kernels run with `debug` alone; it turns the stock check of overflow on too, ten times as slow.
    stock.interpreter_builder.options = stock.InterpreterOptions(debug=True)
    check = TritonSemantic.binary_op_sanitize_overflow_impl
    operations = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def check_at_once(self: Any, lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
        if not isinstance(self.builder, stock.InterpreterBuilder):
            return check(self, lhs, rhs, operation)
        kind = lhs.type.scalar
        if kind.int_bitwidth >= 64:
            return None
        values = operations[operation.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
        if values.size and not kind.get_int_min_value() <= values.min() <= values.max() <= kind.get_int_max_value():
            raise OverflowError(f"int{kind.int_bitwidth} overflow in {operations[operation.__name__].__name__}")
        return None

    TritonSemantic.binary_op_sanitize_overflow_impl = check_at_once


def _let_values_bound_loops(stock: Any) -> None:
    patch = stock._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    stock._patch_lang_tensor = patch_with_index


def _patch_once_a_launch(stock: Any) -> None:
    """Patch the language once a launch, not at every call of a device function: half of the time."""
    import triton.language as tl

    executor = stock.GridExecutor
    patch, execute = stock._patch_lang, executor.__call__
    patched: set[tuple[bool, bool]] = set()
    visible: dict[int, tuple[bool, bool]] = {}

    def patch_once(function: Any) -> Any:
        place = id(function.__globals__)
        if place not in visible:
            names = function.__globals__.values()
            visible[place] = any(value is tl for value in names), any(value is tl.core for value in names)
        modules = visible[place]
        if modules in patched:
            return stock._LangPatchScope()
        patched.add(modules)
        return patch(function)

    def execute_afresh(self: Any, *arguments: Any, **keywords: Any) -> None:
        patched.clear()
        visible.clear()
        try:
            execute(self, *arguments, **keywords)
        finally:
            patched.clear()

    stock._patch_lang, executor.__call__ = patch_once, execute_afresh


@contextmanager
def permuted_programs(seed: int) -> Iterator[None]:
    """Run the programs of every launch in an order drawn from `seed`: results must not depend on it, to the bit."""
    from triton.runtime.interpreter import InterpreterBuilder

    random = np.random.default_rng(seed)
    order = np.arange(0)
    set_program = InterpreterBuilder.set_grid_idx

    def set_permuted_program(self: Any, x: int, y: int, z: int) -> None:
        nonlocal order
        place = int(np.ravel_multi_index((x, y, z), self.grid_dim))
        if place == 0:
            order = random.permutation(int(np.prod(self.grid_dim)))
        set_program(self, *(int(i) for i in np.unravel_index(order[place], self.grid_dim)))

    InterpreterBuilder.set_grid_idx = set_permuted_program
    try:
        yield
    finally:
        InterpreterBuilder.set_grid_idx = set_program
