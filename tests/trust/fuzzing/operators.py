"""Checks of drawn operators and of passes on Triton against plain PyTorch and float64, on the default device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from septr_fast.kernels import launch
from septr_fast.kernels.class_attention import class_attention
from support.judging import Results, Triple, judge
from support.kernels import attention_cases, class_attention_cases, mlp_cases, normalization_cases, pass_cases
from support.kernels.attention_cases import FORMS, Form, Inputs, axis_attention, plain_attention
from support.kernels.token_grids import arranged
from torch import Tensor

from septr_fast.algebra.folded import Direct, LowRank, Merged
from septr_fast.passes.lengths import Lengths
from trust.fuzzing.cases import DTYPES, OperatorCase, PassCase

ALL_FORMS = {**FORMS, "one head": Form(1, 1, True), "one merged head": Form(1, 1, False)}
KINDS = {"direct": Direct, "merged": Merged, "low-rank": LowRank, "class-only": Direct}
TILES = {**pass_cases.TILES, **attention_cases.tiles(), **normalization_cases.SMALL, **mlp_cases.SMALL}


def laid_out(values: Tensor, layout: str, axis: str = "width") -> Tensor:
    """`arranged` for matrices, for `(batch, rows, features)` and for grids with sequences along `axis`.

    What is expanded repeats a sequence, never the tokens of one: attention to keys that are all the same has
    gradients that cancel to rounding.
    """
    if values.dim() == 2:
        return arranged(values[None, ..., None], layout)[0, ..., 0]
    if values.dim() == 3:
        return arranged(values[..., None], layout)[..., 0]
    return arranged(values.transpose(1, 2), layout).transpose(1, 2) if axis == "height" else arranged(values, layout)


def check_operator(case: OperatorCase, *, tiles: Mapping[str, launch.Config] = TILES) -> bool:
    """Judge an operator; whether more draws than one were needed."""
    with launch.override(tiles):
        return judge(lambda seed: operator_triple(case, seed), case.seed)


def check_triton_pass(case: PassCase, *, tiles: Mapping[str, launch.Config] = TILES) -> bool:
    """Judge a pass on Triton against the same in plain PyTorch."""
    with launch.override(tiles):
        return judge(lambda seed: pass_triple(case, seed), case.seed)


def operator_triple(case: OperatorCase, seed: int) -> Triple:
    """An operator's results and gradients, plain PyTorch's, and in float64."""
    triples = {
        "axis_attention": _axis_attention,
        "class_attention": _class_attention,
        "normalize": _normalize,
        "mlp": _mlp,
    }
    return triples[case.operator](case, seed)


def grid_shape(axis: str, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """`(batch, height, width)` of `(batch, rows, length)` along `axis`."""
    batch, rows, length = shape
    return (batch, length, rows) if axis == "height" else shape


def _axis_attention(case: OperatorCase, seed: int) -> Triple:
    torch.manual_seed(seed)
    form = ALL_FORMS[case.form]
    shape, dtype = grid_shape(case.axis, case.shape), DTYPES[case.dtypes[1]]
    drawn = attention_cases.draw(form, shape, case.dim, torch.get_default_device(), dtype, case.scale)
    inputs = Inputs(*(None if x is None else laid_out(x, case.layout, case.axis) for x in drawn))
    output_gradients = attention_cases.output_gradients(inputs, form.heads, case.axis)
    gradients = [laid_out(x, case.gradient_layout, case.axis) for x in output_gradients]
    return attention_triple(inputs, form, case.axis, gradients)


def attention_triple(inputs: Inputs, form: Form, axis: str, gradients: Sequence[Tensor]) -> Triple:
    """Attention's results and the gradients of its inputs, from the outputs' `gradients`."""

    def results(attention: Callable[..., Any], operands: Inputs) -> Results:
        found = attention_cases.step(attention, operands, form.heads, axis, gradients)
        return attention_cases.with_one_lse(found)

    exact = inputs.changed(Tensor.double)
    return results(axis_attention, inputs), results(plain_attention, inputs), results(plain_attention, exact)


def _class_attention(case: OperatorCase, seed: int) -> Triple:
    torch.manual_seed(seed)
    residual, compute = (DTYPES[name] for name in case.dtypes)
    shape = (*grid_shape(case.axis, case.shape), case.dim)
    device = torch.get_default_device()
    drawn = class_attention_cases.draw(shape, case.axis, case.heads, device, compute, case.scale, residual)
    grid, pos, query, cls_hat = drawn
    of_pos = "sliced" if case.layout == "expanded" else case.layout
    inputs = (laid_out(grid, case.layout, case.axis), laid_out(pos, of_pos), query, laid_out(cls_hat, case.layout))
    batch, rows, _ = case.shape
    grad = arranged(torch.randn(batch, rows, case.heads, case.dim), case.gradient_layout)
    eps = class_attention_cases.EPS

    def kernel(*tensors: Tensor) -> Tensor:
        return class_attention(*tensors, eps, case.axis)[0]

    def plain(*tensors: Tensor) -> Tensor:
        return class_attention_cases.plain(*tensors, case.axis)

    step = class_attention_cases.step
    return (
        step(kernel, inputs, grad),
        step(plain, inputs, grad),
        step(plain, tuple(x.double() for x in inputs), grad),
    )


def _written_layout(case: OperatorCase) -> str:
    """Strides of an output: what is expanded cannot be written."""
    return "contiguous" if case.gradient_layout == "expanded" else case.gradient_layout


def _normalize(case: OperatorCase, seed: int) -> Triple:
    torch.manual_seed(seed)
    residual, compute = (DTYPES[name] for name in case.dtypes)
    shape, device = (*case.shape, case.dim), torch.get_default_device()
    drawn = normalization_cases.draw(shape, device, residual, compute, case.scale, case.layout)
    drawn = replace(drawn, grad_hat=arranged(drawn.grad_hat, case.gradient_layout))
    expected = normalization_cases.expected
    return normalization_cases.kernel(drawn, _written_layout(case)), expected(drawn, False), expected(drawn, True)


def _mlp(case: OperatorCase, seed: int) -> Triple:
    torch.manual_seed(seed)
    residual, compute = (DTYPES[name] for name in case.dtypes)
    shape = (*case.shape, case.dim)
    device = torch.get_default_device()
    drawn = mlp_cases.draw(shape, case.hidden, device, residual, compute, case.scale, case.layout)
    drawn = replace(drawn, grad_z=arranged(drawn.grad_z, case.gradient_layout))
    expected = mlp_cases.expected
    return mlp_cases.kernel(drawn, _written_layout(case)), expected(drawn, False), expected(drawn, True)


def padded_lengths(axis: str | None, shape: tuple[int, int, int]) -> Lengths | None:
    """Lengths of a grid `(batch, height, width)`: half, rounded up, and nearly all of a sample in turn.

    Were the others whole, a length that is read in the wrong place might stand for all of a sample by chance.
    """
    if axis is None:
        return None
    size = shape[1] if axis == "height" else shape[2]
    most = size if size % 2 else max(1, size - 1)
    return Lengths(axis, torch.tensor([most if sample % 2 else (size + 1) // 2 for sample in range(shape[0])]).long())


def pass_triple(case: PassCase, seed: int) -> Triple:
    """A pass on Triton, in plain PyTorch, and so in float64 with the same folded weights."""
    torch.manual_seed(seed)
    residual, compute = (DTYPES[name] for name in case.dtypes)
    drawn = pass_cases.draw(
        KINDS[case.formulation],
        case.axis,
        torch.get_default_device(),
        residual,
        compute,
        scale=case.scale,
        shape=case.shape,
        heads=case.heads,
        dim_head=case.dim_head,
        dim=case.dim,
        mlp_dim=case.mlp_dim,
        channels=case.channels,
        class_only=case.formulation == "class-only",
    )
    tokens = "pixels" if case.formulation == "low-rank" else "grid"
    tensors = drawn.tensors | {tokens: arranged(drawn.tensors[tokens], case.layout)}
    gradients = {name: laid_out(x, case.gradient_layout) for name, x in drawn.output_gradients().items()}
    lengths = padded_lengths(case.padded, grid_shape(case.axis, case.shape))
    drawn = replace(drawn, tensors=tensors, lengths=lengths)
    exact = drawn.changed(Tensor.double, torch.float64)
    return (
        pass_cases.step(drawn, "triton", gradients),
        pass_cases.step(drawn, "torch", gradients),
        pass_cases.step(exact, "torch", gradients),
    )
