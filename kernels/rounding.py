"""Values that are rounded where a compiler might not round them.

A product that is added to a sum is contracted with it, not rounded between. Where the lanes of a warp exchange what
they add up, each would add its own product, not rounded, to its neighbour's rounded one: what shall be one sum would
differ in its last bit, and which is stored a matter of chance. In `a b + 0` the product is rounded, and nothing
is left to contract. So is every sum of products; elsewhere it stands where the compiler is seen to contract: `make
trust` looks for it in every build.

Products of float32 operands are exact, without tensor cores: on a GPU such passes are PyTorch's, unless Triton is
insisted on.
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
def dot(a, b, acc=None):
    """`tl.dot`, of float32 operands as they are, which is not what Triton does untold."""
    return tl.dot(a, b, acc, input_precision="ieee")
