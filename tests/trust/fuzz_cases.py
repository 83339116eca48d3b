"""What the fuzzing draws: cases of operators, passes and models, and the categories that each belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from token_grids import LAYOUTS

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
    """One pass of `septr_fast.functional`, forward and backward.

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


BATCHES = (2, 1, 2, 1, 0)
"""Sizes of batches, as often as they are drawn."""
SHAPES = [(batch, rows, length) for batch in BATCHES for rows in (2, 1, 3) for length in LENGTHS]
INTERPRETED_SHAPES = [shape for shape in SHAPES if shape[0] * shape[1] * -(-shape[2] // TILE) <= 4]
"""With few programs: the interpreter takes milliseconds for each."""

CHUNKS = (None, 1, 1 << 12, 1 << 14)
"""Bytes of a chunk: as shipped, a row each, and a few rows."""

SEEDS = st.integers(0, 2**20)
LAYOUT = st.sampled_from(LAYOUTS)


@st.composite
def operators(draw: Callable[..., object]) -> OperatorCase:
    """Cases of operators, small enough for the interpreter."""
    operator = draw(st.sampled_from(("axis_attention", *OPERATORS)))
    return OperatorCase(
        operator=operator,
        form=draw(st.sampled_from(ATTENTION_FORMS)) if operator == "axis_attention" else "",
        axis=draw(st.sampled_from(AXES)),
        shape=draw(st.sampled_from(INTERPRETED_SHAPES)),
        dim=draw(st.sampled_from((8, 3, 16, 17, 24, 33))),
        heads=draw(st.sampled_from((2, 1, 3, 5))) if operator == "class_attention" else 0,
        hidden=draw(st.sampled_from((24, 1, 16, 33))) if operator == "mlp" else 0,
        dtypes=draw(st.sampled_from(MIXED)),
        scale=draw(st.sampled_from(SCALES)),
        layout=draw(LAYOUT),
        gradient_layout=draw(LAYOUT),
        seed=draw(SEEDS),
    )


@st.composite
def passes(draw: Callable[..., object], backend: str) -> PassCase:
    """Cases of passes."""
    triton = backend == "triton"
    dim = draw(st.sampled_from((8, 16, 12, 17)))
    heads = draw(st.sampled_from((2, 1, 3)))
    formulation = draw(st.sampled_from(FORMULATIONS))
    axis = draw(st.sampled_from(AXES))
    across = "width" if axis == "height" else "height"
    padded = [None, across] if triton and formulation == "low-rank" else [None, axis, across]
    dtypes = MIXED if triton else [(name, name) for name in DTYPES if formulation != "low-rank" or "float1" not in name]
    return PassCase(
        formulation=formulation,
        backend=backend,
        axis=axis,
        shape=draw(st.sampled_from(INTERPRETED_SHAPES if triton else SHAPES)),
        heads=heads,
        dim_head=dim if heads == 1 and draw(st.booleans()) else draw(st.sampled_from((8, 4, 12))),
        dim=dim,
        mlp_dim=draw(st.sampled_from((16, 8, 33))),
        channels=draw(st.sampled_from((1, 2, 5))),
        dtypes=draw(st.sampled_from(list(dtypes))),
        scale=draw(st.sampled_from(SCALES)),
        layout=draw(LAYOUT),
        gradient_layout=draw(LAYOUT),
        padded=draw(st.sampled_from(padded)),
        seed=draw(SEEDS),
        chunk=None if triton else draw(st.sampled_from(CHUNKS)),
    )


def merged_in_chunks() -> st.SearchStrategy[PassCase]:
    """Passes on PyTorch with a backward pass by hand, over several rows in chunks that are not as shipped."""
    return passes("torch").map(_merged_in_chunks)


def _merged_in_chunks(case: PassCase) -> PassCase:
    batch, rows, length = case.shape
    shape, dtypes = (max(1, batch), max(2, rows), length), ("float32", "float32")
    return replace(case, formulation="merged", shape=shape, dtypes=dtypes, padded=None, chunk=case.chunk or 1)


@st.composite
def models(draw: Callable[..., object], backend: str) -> ModelCase:
    """Cases of models."""
    triton = backend == "triton"
    sizes = [(height, width) for height in LENGTHS for width in LENGTHS if height * width <= (17 if triton else 300)]
    tokens = draw(st.sampled_from(sizes))
    pool = draw(st.sampled_from((None, (2, 1), (2, 3))))
    dim, heads = draw(st.sampled_from((16, 8, 12))), draw(st.sampled_from((2, 1, 3)))
    depth = draw(st.sampled_from((1,) if triton else (1, 2)))
    first_axis = draw(st.sampled_from(AXES))
    inner = ("direct", "merged")
    first, last = st.sampled_from((*inner, "low-rank")), st.sampled_from((*inner, "class-only"))
    formulations = st.tuples(first, *[st.sampled_from(inner)] * (2 * depth - 2), last)
    padded = [None, *(axis for axis in AXES if not triton or axis != first_axis)]
    return ModelCase(
        backend=backend,
        formulations=draw(st.one_of(st.none(), formulations)),
        batch=draw(st.sampled_from(BATCHES)),
        channels=draw(st.sampled_from((1, 3, 9))),
        tokens=tokens,
        pool=pool,
        rest=(0, 0) if pool is None else tuple(draw(st.integers(0, size - 1)) for size in pool),
        depth=depth,
        heads=heads,
        dim_head=dim if heads == 1 and draw(st.booleans()) else draw(st.sampled_from((8, 4))),
        dim=dim,
        mlp_dim=draw(st.sampled_from((16, 8))),
        first_axis=first_axis,
        dtypes=(draw(st.sampled_from(KERNEL_DTYPES if triton else tuple(DTYPES))),) * 2,
        scale=draw(st.sampled_from(SCALES)),
        layout=draw(LAYOUT),
        gradient_layout=draw(LAYOUT),
        padded=draw(st.sampled_from(padded)),
        recompute=not triton and draw(st.booleans()),
        seed=draw(SEEDS),
        chunk=None if triton else draw(st.sampled_from(CHUNKS)),
    )
