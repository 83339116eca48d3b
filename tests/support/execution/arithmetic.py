"""What the instructions for single values compute, on arrays with one value for each thread.

Registers hold bits, unsigned: floating-point numbers and signed integers are views of them. Multiply-adds go through
float64, which rounds a second time: in the last place, seldom.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from support.execution.memory import Array

Function = Callable[..., Array]
KINDS: dict[str, type[np.generic]] = {
    "b16": np.uint16,
    "u16": np.uint16,
    "s16": np.int16,
    "b32": np.uint32,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "b64": np.uint64,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
    "pred": np.bool_,
}
"""What a register is seen as."""
_SMALLEST = np.float32(2.0**-126)
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}


def bits(kind: str) -> int:
    """Of a register of `kind`, but for predicates."""
    return int(kind[1:])


def function(parts: tuple[str, ...]) -> tuple[Function, tuple[str, ...]]:
    """What an instruction does.

    Returns:
        A function, and the kinds of what it takes, the last one for all that follow.

    Raises:
        NotImplementedError: for an instruction that no kernel has had so far.
    """
    name, kind = parts[0], parts[-1]
    is_float = kind in ("f32", "f64")
    if name == "setp":
        return _comparison(parts[1], is_float), (kind,)
    if name == "cvt":
        return _conversion(".".join(parts[1:]))
    if name == "selp":
        return (lambda yes, no, which: np.where(which, yes, no)), (kind, kind, "pred")
    if kind.removesuffix("x2") in _NARROW and name in ("add", "sub", "mul", "fma"):
        return _narrow(name, kind)
    if name in ("mul", "mad") and not is_float:
        return _product(name, parts[1], kind)
    if name in ("shl", "shr"):
        return _shift(name, kind), (kind, "u32")
    if name == "bfe":
        return _field(kind), (kind, "u32")
    found = {**_ANY, **(_FLOATS if is_float else _INTEGERS)}.get(name)
    if found is None:
        raise NotImplementedError(f"no instruction {'.'.join(parts)}")
    if "NaN" in parts:
        found = {"max": np.maximum, "min": np.minimum}[name]
    return (lambda *given: flushed(found(*map(flushed, given)))) if "ftz" in parts else found, (kind,)


def flushed(x: Array) -> Array:
    """`x` in float32 with zeros for what has no exponent."""
    return np.where(np.abs(x) < _SMALLEST, np.copysign(np.float32(0), x), x).astype(np.float32)


def to_bfloat16(x: Array) -> Array:
    """The bits of float32 `x` in bfloat16, rounded to the nearest, ties to even."""
    wide = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((wide + np.uint64(0x7FFF) + ((wide >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def from_bfloat16(x: Array) -> Array:
    """float32 of bits in bfloat16."""
    return (np.asarray(x).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_float16(x: Array) -> Array:
    """The bits of float32 `x` in float16."""
    return np.asarray(x, np.float32).astype(np.float16).view(np.uint16)


def from_float16(x: Array) -> Array:
    """float32 of bits in float16."""
    return np.asarray(x).astype(np.uint16).view(np.float16).astype(np.float32)


def _pair(low: Array, high: Array) -> Array:
    return np.asarray(low).astype(np.uint32) | (np.asarray(high).astype(np.uint32) << np.uint32(16))


def _multiply_add(x: Array, y: Array, z: Array) -> Array:
    if x.dtype != np.float32:
        return x * y + z
    return (x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)).astype(np.float32)


def _quotient(x: Array, y: Array) -> Array:
    """Rounded towards zero."""
    wide, other = x.astype(np.int64), y.astype(np.int64)
    size = np.abs(wide) // np.maximum(np.abs(other), 1)
    return np.where((wide < 0) != (other < 0), -size, size).astype(x.dtype)


_ANY: dict[str, Function] = {
    "add": operator.add,
    "sub": operator.sub,
    "neg": lambda x: x.dtype.type(0) - x if x.dtype.kind in "iu" else -x,
    "abs": np.abs,
}
_FLOATS: dict[str, Function] = {
    "mul": operator.mul,
    "div": operator.truediv,
    "fma": _multiply_add,
    "max": np.fmax,
    "min": np.fmin,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x.dtype.type(1) / np.sqrt(x),
    "rcp": lambda x: x.dtype.type(1) / x,
}
_INTEGERS: dict[str, Function] = {
    "max": np.maximum,
    "min": np.minimum,
    "div": _quotient,
    "rem": lambda x, y: (x - _quotient(x, y) * y).astype(x.dtype),
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": np.invert,
}


_NARROW = {"bf16": (from_bfloat16, to_bfloat16), "f16": (from_float16, to_float16)}


def _narrow(name: str, kind: str) -> tuple[Function, tuple[str, ...]]:
    """Arithmetic of 16-bit floating-point numbers, alone or in pairs: in float32, then rounded."""
    widened, rounded = _NARROW[kind.removesuffix("x2")]
    compute = {**_ANY, **_FLOATS}[name]

    def alone(*given: Array) -> Array:
        return rounded(compute(*map(widened, given)))

    def pair(*given: Array) -> Array:
        return _pair(alone(*(x & np.uint32(0xFFFF) for x in given)), alone(*(x >> np.uint32(16) for x in given)))

    return (pair, ("b32",)) if kind.endswith("x2") else (alone, ("b16",))


def _comparison(how: str, is_float: bool) -> Function:
    if how in ("nan", "num"):
        return lambda x, y: (np.isnan(x) | np.isnan(y)) == (how == "nan")
    unordered = is_float and how.endswith("u")
    compare = _COMPARISONS[how[:-1] if unordered else how]
    if not is_float:
        return compare
    return lambda x, y: np.where(np.isnan(x) | np.isnan(y), unordered, compare(x, y))


def _product(name: str, part: str, kind: str) -> tuple[Function, tuple[str, ...]]:
    wide = f"{kind[0]}{2 * bits(kind)}"
    dtype = KINDS[wide] if part != "lo" else KINDS[kind]

    def times(x: Array, y: Array) -> Array:
        product: Array = x.astype(dtype) * y.astype(dtype)
        return (product >> dtype(bits(kind))).astype(KINDS[kind]) if part == "hi" else product

    out = wide if part == "wide" else kind
    if name == "mul":
        return times, (kind,)
    return (lambda x, y, z: times(x, y) + z), (kind, kind, out)


def _shift(name: str, kind: str) -> Function:
    size = np.uint32(bits(kind))

    def shift(x: Array, by: Array) -> Array:
        least = np.minimum(by, size - np.uint32(1)).astype(x.dtype)
        if name == "shr":
            shifted = x >> least
            return shifted if kind[0] == "s" else np.where(by >= size, x.dtype.type(0), shifted)
        return np.where(by >= size, x.dtype.type(0), x << least)

    return shift


def _field(kind: str) -> Function:
    """Bits from `position` on, `length` of them, the highest repeated in front where the kind is signed."""

    def field(x: Array, position: Array, length: Array) -> Array:
        above = (np.uint32(bits(kind)) - position - length).astype(x.dtype)
        return (x << above) >> (above + position.astype(x.dtype))

    return field


def _conversion(parts: str) -> tuple[Function, tuple[str, ...]]:
    exact: dict[str, tuple[Function, str]] = {
        "f32.bf16": (from_bfloat16, "b16"),
        "f32.f16": (from_float16, "b16"),
        "rn.bf16.f32": (to_bfloat16, "f32"),
        "rn.f16.f32": (to_float16, "f32"),
        "rn.bf16x2.f32": (lambda high, low: _pair(to_bfloat16(low), to_bfloat16(high)), "f32"),
        "rn.f16x2.f32": (lambda high, low: _pair(to_float16(low), to_float16(high)), "f32"),
        "rn.f32.s32": (lambda x: x.astype(np.float32), "s32"),
        "rn.f32.u32": (lambda x: x.astype(np.float32), "u32"),
    }
    if parts in exact:
        convert, given = exact[parts]
        return convert, (given,)
    out, _, given = parts.partition(".")
    if out in KINDS and given in KINDS and "f" not in out + given:
        return (lambda x: x.astype(KINDS[out])), (given,)
    raise NotImplementedError(f"no conversion cvt.{parts}")
