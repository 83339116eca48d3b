"""Checks of drawn passes in plain PyTorch and of whole models against the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from septr_fast.kernels import launch
from support.compare import pair
from support.judging import Measure, Results, Triple, by_norm, by_rule, farther, in_float64, judge
from support.kernels.pass_cases import TILES
from support.kernels.token_grids import arranged
from support.padded import alone
from torch import Tensor, nn

from septr_fast import SepTr, reference
from septr_fast.algebra.fold import Tokens, fold
from septr_fast.passes import dispatch
from septr_fast.passes.lengths import Lengths, clear
from septr_fast.passes.settings import Settings
from trust.fuzzing.cases import DTYPES, ModelCase, PassCase
from trust.fuzzing.chunks import chunks
from trust.fuzzing.operators import grid_shape, laid_out, padded_lengths

IN_PADDING = float("nan")
CLASSES = 3


class Operands(nn.Module):
    """Everything that a pass takes, as parameters, in float32."""

    def __init__(self, case: PassCase) -> None:
        super().__init__()
        batch, _, length = case.shape
        shape, low_rank = grid_shape(case.axis, case.shape), case.formulation == "low-rank"
        self.transformer = reference.Transformer(case.dim, case.heads, case.dim_head, case.mlp_dim)
        self.projection = nn.Linear(case.channels, case.dim) if low_rank else nn.Identity()
        tokens = torch.randn(*shape, case.channels if low_rank else case.dim)
        self.tokens = nn.Parameter(arranged(case.scale * tokens, case.layout))
        self.cls_token = nn.Parameter(case.scale * torch.randn(1 if low_rank else batch, case.dim))
        self.positions = nn.Parameter(case.scale * torch.randn(1 + length, case.dim))


def check_torch_pass(case: PassCase) -> bool:
    """Judge a pass in plain PyTorch against the reference; whether more draws than one were needed."""
    with chunks(case.chunk):
        return judge(lambda seed: _torch_pass(case, seed), case.seed, _measure(case.dtypes[0], by_rule))


def _measure(dtype: str, otherwise: Measure) -> Measure:
    return in_float64 if dtype == "float64" else otherwise


def _torch_pass(case: PassCase, seed: int) -> Triple:
    torch.manual_seed(seed)
    dtype = DTYPES[case.dtypes[0]]
    operands = Operands(case).to(dtype)
    exact = copy.deepcopy(operands).double()
    lengths = padded_lengths(case.padded, grid_shape(case.axis, case.shape))
    outs = expected_pass(operands, case, lengths)
    directions = [laid_out(torch.randn(out.shape).to(dtype), case.gradient_layout) for out in outs.values()]

    def step(run: Callable[..., Results], leaves: Operands) -> Results:
        with torch.no_grad():
            without = {f"{name}, without gradients": x for name, x in run(leaves, case, lengths).items()}
        results = run(leaves, case, lengths)
        named = dict(leaves.named_parameters())
        given = [direction.to(out.dtype) for direction, out in zip(directions, results.values(), strict=True)]
        found = torch.autograd.grad(list(results.values()), list(named.values()), given, allow_unused=True)
        gradients = (torch.zeros_like(x) if g is None else g for g, x in zip(found, named.values(), strict=True))
        return without | {name: x.detach() for name, x in results.items()} | dict(zip(named, gradients, strict=True))

    return step(run_pass, operands), step(expected_pass, operands), step(expected_pass, exact)


def run_pass(operands: Operands, case: PassCase, lengths: Lengths | None) -> Results:
    """By `septr_fast.passes.dispatch` on the case's backend."""
    settings = Settings(case.axis, lengths=lengths, backend=case.backend)
    tokens = operands.tokens if lengths is None else clear(operands.tokens, lengths)
    made_of = None
    if case.formulation == "low-rank":
        made_of = Tokens(cast(nn.Linear, operands.projection), operands.cls_token[0], operands.positions)
    weights = fold(operands.transformer, case.formulation, operands.tokens.dtype, made_of)
    given = (tokens, operands.cls_token, operands.positions, weights, settings)
    if case.formulation == "class-only":
        return {"cls_out": dispatch.class_only_pass(*given)}
    if case.formulation == "low-rank":
        out, cls_out = dispatch.low_rank_pass(tokens, weights, settings)
    else:
        out, cls_out = dispatch.axis_pass(*given)
    return {"out": out if lengths is None else clear(out, lengths), "cls_out": cls_out}


def expected_pass(operands: Operands, case: PassCase, lengths: Lengths | None) -> Results:
    """By the reference, each sample cut to its length."""
    rows = operands.projection(operands.tokens)
    rows = rows.transpose(1, 2) if case.axis == "height" else rows
    cls_tokens = operands.cls_token.expand(len(rows), -1)[:, None, None]
    outs, cls_outs = [], []
    for sample in range(len(rows)):
        count, length = rows.shape[1:3]
        if lengths is not None:
            valid = int(lengths.valid[sample])
            count, length = (count, valid) if lengths.axis == case.axis else (valid, length)
        positions = operands.positions[None, None, : 1 + length]
        cut, cls_token = rows[sample : sample + 1, :count, :length], cls_tokens[sample : sample + 1]
        out, cls_out = reference.attend(cut, cls_token, positions, operands.transformer)
        outs.append(nn.functional.pad(out, (0, 0, 0, rows.shape[2] - length, 0, rows.shape[1] - count)))
        cls_outs.append(cls_out[:, 0, 0])
    out, cls_out = (torch.cat(outs), torch.cat(cls_outs)) if outs else (rows, operands.cls_token.expand(0, -1))
    results = {"out": out.transpose(1, 2) if case.axis == "height" else out, "cls_out": cls_out}
    return {"cls_out": cls_out} if case.formulation == "class-only" else results


def check_model(case: ModelCase) -> bool:
    """Judge a model against the reference; whether more draws than one were needed.

    On PyTorch by the norm of all errors: a rounding in an early transformer reaches all values of a later one.
    """
    measure = by_rule if case.backend == "triton" else _measure(case.dtypes[0], by_norm)
    with launch.override(TILES), chunks(case.chunk):
        return judge(lambda seed: _model(case, seed), case.seed, measure)


def model_config(case: ModelCase) -> dict[str, Any]:
    """Arguments of the reference's constructor."""
    pool = case.pool or (1, 1)
    height, width = (n * size + rest for n, size, rest in zip(case.tokens, pool, case.rest, strict=True))
    config = {name: getattr(case, name) for name in ("channels", "depth", "heads", "dim_head", "dim", "mlp_dim")}
    return {
        **config,
        "input_size": (height, width),
        "num_classes": CLASSES,
        "down_sample_input": pool,
        "first_axis": case.first_axis,
    }


def _model(case: ModelCase, seed: int) -> Triple:
    torch.manual_seed(seed)
    config, dtype = model_config(case), DTYPES[case.dtypes[0]]
    options = {"formulation": case.formulations}
    expected, model = pair(config, torch.float32, backend=case.backend, **options)
    expected, model = expected.to(dtype), model.to(dtype)
    model.set_grad_checkpointing(case.recompute)
    values = case.scale * torch.randn(case.batch, case.channels, *config["input_size"])
    lengths = _pixels(case, config)
    x = arranged(_with_padding(values, lengths, case.padded).to(dtype), case.layout)
    direction = laid_out(torch.randn(case.batch, CLASSES), case.gradient_layout)

    def ours(each: SepTr) -> Results:
        def logits(x: Tensor) -> Tensor:
            return each(x, lengths, lengths_axis=case.padded) if lengths else each(x)

        return _gradients(logits, each, x, direction)

    def plain(each: nn.Module, x: Tensor) -> Results:
        def logits(x: Tensor) -> Tensor:
            if not lengths or case.padded is None:
                return each(x)
            return torch.cat([alone(config, each, x[[i]], length, case.padded) for i, length in enumerate(lengths)])

        return _gradients(logits, each, x, direction)

    oracle = plain(copy.deepcopy(expected).double(), x.double())
    plains = [plain(expected, x)]
    if case.backend == "triton":
        on_torch = SepTr(**config, **options, backend="torch").to(dtype)
        on_torch.load_state_dict(model.state_dict())
        plains.append(ours(on_torch))
    return ours(model), farther(plains, oracle), oracle


def _gradients(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, direction: Tensor) -> Results:
    """Logits with and without gradients, and the gradients of the input and of every parameter."""
    with torch.no_grad():
        without = run(x.detach())
    x = x.detach().requires_grad_()
    logits = run(x)
    named = {"input": x, **dict(module.named_parameters())}
    found = torch.autograd.grad(logits, list(named.values()), direction.to(logits.dtype), allow_unused=True)
    gradients = (torch.zeros_like(v) if g is None else g for g, v in zip(found, named.values(), strict=True))
    return {"logits": logits.detach(), "logits, without gradients": without, **dict(zip(named, gradients, strict=True))}


def _pixels(case: ModelCase, config: dict[str, Any]) -> list[int] | None:
    """Lengths in pixels along the padded axis: every second sample is cut, by a part of a token more or less."""
    if case.padded is None or case.batch == 0:
        return None
    place = ("height", "width").index(case.padded)
    size, pool = config["input_size"][place], (case.pool or (1, 1))[place]
    return [size if sample % 2 else max(pool, (size + 1) // 2) for sample in range(case.batch)]


def _with_padding(values: Tensor, lengths: list[int] | None, axis: str | None) -> Tensor:
    """`values` with what nobody may read in the padding."""
    for sample, length in enumerate(lengths or []):
        padding = values[sample, :, length:] if axis == "height" else values[sample, :, :, length:]
        padding.fill_(IN_PADDING)
    return values
