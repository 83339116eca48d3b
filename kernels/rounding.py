"""Values that are rounded where a compiler might not round them.

A product that is added to a sum is contracted with it, not rounded between. Where the lanes of a warp exchange what
they add up, each would add its own product, not rounded, to its neighbour's rounded one: what shall be one sum would
differ in its last bit, and which is stored a matter of chance. In `a b + 0` the product is rounded, and nothing
is left to contract. So is every sum of products; elsewhere it stands where the compiler is seen to contract: `make
trust` looks for it in every build.

Tensor cores drop the 13 last bits of float32 operands in TF32, as users of Triton report (triton-lang/triton#4574).
Rounded to the nearest before, the operands err by half as much at most, and no longer towards zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded_product(a, b):
    """`a b` in float32, rounded whatever becomes of it."""
    return tl.fma(a, b, 0.0)


@triton.jit
def sum_of_products(a, b, AXIS: tl.constexpr):
    """The sum of `a b` along an axis, each lane's the same to the bit."""
    return tl.sum(rounded_product(a, b), AXIS)


@triton.jit
def round_to_tf32(x, ANEW: tl.constexpr):
    """float32 rounded to the 10 bits of TF32, to the nearest, ties away from zero; NaN and infinities stay.

    `ANEW` at each use: what is rounded once and kept for all takes registers.
    """
    return tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=not ANEW, pack=1
    )


@triton.jit
def dot(a, b, acc=None, input_precision: tl.constexpr = None, ANEW: tl.constexpr = False):
    """`tl.dot`, of rounded operands in TF32; the precision is to be named."""
    if input_precision == "tf32" and a.dtype == tl.float32:
        a, b = round_to_tf32(a, ANEW), round_to_tf32(b, ANEW)
    return tl.dot(a, b, acc, input_precision=input_precision)
