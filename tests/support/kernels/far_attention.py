"""Attention along an axis of tensors whose offsets need 64 bits, as a program of its own: `far_attention.py cpu`.

Memory that nothing touches is not taken, so a view whose elements lie far apart costs a few pages. With three
places in a dimension the stride fits 32 bits and its products do not.
"""

from __future__ import annotations

import sys

import torch
from support.kernels import interpreter
from torch import Tensor

DIMENSIONS = ("batch", "row", "token", "head", "feature")
SIZES = {"batch": 1, "row": 1, "token": 1, "head": 1, "feature": 8}
GRID, PER_ROW, PER_SAMPLE = DIMENSIONS, ("batch", "row", "head", "feature"), ("batch", "head", "feature")
FAR = 2**31 + 2**16
"""Elements between the first and the last place of the dimension that is spread out."""


PART = "part"
"""Of the log-sum-exp."""


class Arena:
    """Memory of one dtype for tensors with the dimension `spread`, if any, spread out over 2³¹ elements."""

    def __init__(self, spread: str | None, dtype: torch.dtype, device: str) -> None:
        self.spread, self.used = spread, 0
        self.memory = torch.empty((FAR if spread else 0) + 2**14, dtype=dtype, device=device)

    def empty(self, names: tuple[str, ...], sizes: dict[str, int]) -> Tensor:
        """A tensor with dimensions `names`."""
        shape = [sizes[name] for name in names]
        strides = list(torch.empty(shape, device="meta").stride())
        if self.spread in names:
            strides[names.index(self.spread)] = FAR // (sizes[self.spread] - 1)
        tensor = self.memory.as_strided(shape, strides, self.used)
        self.used += tensor.numel()
        return tensor

    def normal(self, names: tuple[str, ...], sizes: dict[str, int]) -> Tensor:
        """A tensor with dimensions `names`, normal and the same wherever it lies."""
        tensor = self.empty(names, sizes)
        return tensor.copy_(torch.randn(tensor.shape))


def run(sizes: dict[str, int], spread: str | None, device: str) -> list[Tensor]:
    """All results, forward and backward."""
    from septr_fast.kernels.axis_attention import ClassGradients, Operands, attend, attend_backward

    torch.manual_seed(0)
    arena, statistics = Arena(spread, torch.float16, device), Arena(spread, torch.float32, device)
    operands = Operands(*(arena.normal(names, sizes) for names in (GRID,) * 3 + (PER_SAMPLE,) * 3))
    out, cls_out = (arena.empty(names, sizes) for names in (GRID, PER_ROW))
    lse, cls_lse = (statistics.empty((*names[:-1], PART), {**sizes, PART: 2}) for names in (GRID, PER_ROW))
    attend(operands, out, cls_out, lse, cls_lse)
    grads = [arena.normal(names, sizes) for names in (GRID, PER_ROW)]
    written = [arena.empty(GRID, sizes) for _ in range(3)]
    batch, rows = operands.key.shape[:2]
    of_class = ClassGradients.empty(operands, batch * rows)
    attend_backward(operands, lse, cls_lse, *grads, *written, of_class)
    return [out, cls_out, lse, cls_lse, *written, *of_class.sums(batch, rows)]


def main(device: str) -> None:
    """Compare with tensors side by side to the bit, each dimension spread out in turn."""
    from septr_fast.kernels import launch
    from support.kernels.attention_cases import tiles

    with launch.override(tiles()):
        for spread in DIMENSIONS:
            sizes = {**SIZES, spread: max(3, SIZES[spread])}
            for result, expected in zip(run(sizes, spread, device), run(sizes, None, device), strict=True):
                assert torch.equal(result, expected), f"wrong where the {spread} is spread out"


if __name__ == "__main__":
    interpreter.install()
    main(sys.argv[1])
