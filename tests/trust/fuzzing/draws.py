"""What the fuzzing draws: strategies of hypothesis for the cases of `trust.fuzzing.cases`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st
from support.kernels.token_grids import LAYOUTS

from trust.fuzzing.cases import (
    ATTENTION_FORMS,
    AXES,
    DTYPES,
    FORMULATIONS,
    KERNEL_DTYPES,
    LENGTHS,
    MIXED,
    OPERATORS,
    SCALES,
    TILE,
    ModelCase,
    OperatorCase,
    PassCase,
)

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
