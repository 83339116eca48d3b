"""Cases of operators, passes and models, and the categories that each belongs to; `fuzz_draws` draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
KERNEL_DTYPES = ("float32", "float16", "bfloat16")
MIXED = (*((dtype, dtype) for dtype in KERNEL_DTYPES), ("float32", "float16"), ("float32", "bfloat16"))
"""Of the tokens and of the products."""
SCALES = (0.1, 1.0, 3.0, 8.0)
TILE = 16
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 31)
LENGTHS = (1, 2, 3, 5, 7, 11, 13, TILE - 1, TILE, TILE + 1, 23, 31, 2 * TILE, 2 * TILE + 1)
OPERATORS = ("axis_attention", "class_attention", "normalize", "mlp")
ATTENTION_FORMS = ("merged", "direct", "multi-query", "grouped", "grouped-merged", "one head", "one merged head")
FORMULATIONS = ("direct", "merged", "low-rank", "class-only")
AXES = ("height", "width")


@dataclass(frozen=True)
class OperatorCase:
    """One operator of `septr_fast.kernels`, forward and backward.

    Attributes:
        operator: its name.
        form: of `axis_attention`.
        axis: along which a sequence runs.
        shape: batch, rows and length.
        dim: features of a head in `axis_attention`, else of a token.
        heads: of `class_attention`.
        hidden: width of the hidden layer of `mlp`.
        dtypes: of the tokens and of the products; an operator with one dtype takes the second.
        scale: of the operands.
        layout: strides of what goes in.
        gradient_layout: strides of the output's gradient, and of what `normalize` and `mlp` write.
        seed: of the values.
    """

    operator: str
    form: str
    axis: str
    shape: tuple[int, int, int]
    dim: int
    heads: int
    hidden: int
    dtypes: tuple[str, str]
    scale: float
    layout: str
    gradient_layout: str
    seed: int

    def categories(self) -> Iterator[str]:
        """What the case belongs to."""
        yield from (f"operator {self.operator}", f"along the {self.axis}", "triton", *_of_values(self))
        yield from _of_lengths(self.shape[2])
        if self.shape[0] == 0:
            yield "empty batch"
        if self.operator == "axis_attention":
            yield f"attention {self.form}"
        if self.heads == 1 or self.form.startswith("one"):
            yield "single head"


@dataclass(frozen=True)
class PassCase:
    """One pass of `septr_fast.passes.dispatch`, forward and backward.

    Attributes:
        formulation: of the attention.
        backend: "torch" or "triton".
        axis: along which a sequence runs.
        shape: batch, rows and length.
        heads: number of heads.
        dim_head: features of a head.
        dim: features of a token.
        mlp_dim: width of the hidden layer.
        channels: of a pixel.
        dtypes: of the tokens and of the products.
        scale: of the tokens.
        layout: strides of the grid.
        gradient_layout: strides of the gradient of the grid that comes out.
        padded: None, or an axis along which every second sample is padded.
        seed: of the values.
        chunk: bytes of a chunk of rows on PyTorch, or None for the shipped ones.
    """

    formulation: str
    backend: str
    axis: str
    shape: tuple[int, int, int]
    heads: int
    dim_head: int
    dim: int
    mlp_dim: int
    channels: int
    dtypes: tuple[str, str]
    scale: float
    layout: str
    gradient_layout: str
    padded: str | None
    seed: int
    chunk: int | None = None

    def categories(self) -> Iterator[str]:
        """What the case belongs to."""
        yield from (f"pass {self.formulation}", f"along the {self.axis}", self.backend, *_of_values(self))
        yield from _of_lengths(self.shape[2])
        yield from _of_heads(self.heads, self.dim_head, self.dim)
        if self.shape[0] == 0:
            yield "empty batch"
        if self.formulation == "low-rank":
            yield "one channel" if self.channels == 1 else "many channels"
        if self.padded:
            yield "padded along a sequence" if self.padded == self.axis else "padded across the sequences"


@dataclass(frozen=True)
class ModelCase:
    """A whole model, forward and backward.

    Attributes:
        backend: "torch" or "triton".
        formulations: None for the plan's, or one for each transformer.
        batch: number of spectrograms.
        channels: of a spectrogram.
        tokens: height and width in tokens.
        pool: height and width of the pooling, or None.
        rest: rows and columns that the pooling leaves over.
        depth: number of blocks.
        heads: number of heads.
        dim_head: features of a head.
        dim: features of a token.
        mlp_dim: width of the hidden layer.
        first_axis: along which the first transformer attends.
        dtypes: of parameters and input, twice.
        scale: of the spectrograms.
        layout: strides of the spectrograms.
        gradient_layout: strides of the logits' gradient.
        padded: None, or an axis along which every second spectrogram is padded.
        recompute: whether the backward pass recomputes.
        seed: of the values.
        chunk: bytes of a chunk of rows on PyTorch, or None for the shipped ones.
    """

    backend: str
    formulations: tuple[str, ...] | None
    batch: int
    channels: int
    tokens: tuple[int, int]
    pool: tuple[int, int] | None
    rest: tuple[int, int]
    depth: int
    heads: int
    dim_head: int
    dim: int
    mlp_dim: int
    first_axis: str
    dtypes: tuple[str, str]
    scale: float
    layout: str
    gradient_layout: str
    padded: str | None
    recompute: bool
    seed: int
    chunk: int | None = None

    def categories(self) -> Iterator[str]:
        """What the case belongs to."""
        yield from ("model", f"first along the {self.first_axis}", self.backend, *_of_values(self))
        yield from (f"formulation {name}" for name in set(self.formulations or ("planned",)))
        for length in self.tokens:
            yield from _of_lengths(length)
        yield from _of_heads(self.heads, self.dim_head, self.dim)
        yield "one channel" if self.channels == 1 else "many channels"
        if self.batch == 0:
            yield "empty batch"
        if self.pool:
            yield "pooling that does not divide" if any(self.rest) else "pooling that divides"
        if self.padded:
            yield f"model padded along the {self.padded}"
        if self.recompute:
            yield "recomputation"


Case = OperatorCase | PassCase | ModelCase


def _of_values(case: Case) -> Iterator[str]:
    residual, compute = case.dtypes
    yield compute if residual == compute else f"{residual} tokens, {compute} products"
    yield f"scale {case.scale:g}"
    yield f"{case.layout} inputs"
    yield f"{case.gradient_layout} gradients"


def _of_lengths(length: int) -> Iterator[str]:
    if length == 1:
        yield "length 1"
    if length in PRIMES:
        yield "prime length"
    edges = {TILE - 1: "tile edge - 1", 0: "tile edge", 1: "tile edge + 1"}
    if length >= TILE - 1 and length % TILE in edges:
        yield edges[length % TILE]


def _of_heads(heads: int, dim_head: int, dim: int) -> Iterator[str]:
    if heads == 1:
        yield "single head without a projection" if dim_head == dim else "single head"
