"""Wrong calls of the operators on Triton kernels, and of the passes above them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from septr_fast.kernels.axis_attention_operator import axis_attention
from septr_fast.kernels.axis_pass_operator import axis_pass
from septr_fast.kernels.class_attention import class_attention
from septr_fast.kernels.low_rank_pass_operator import low_rank_pass
from support.kernels import pass_cases
from torch import Tensor

from septr_fast.algebra.folded import Direct, Dropout, LowRank, Merged, Mlp
from septr_fast.passes import dispatch
from trust.wrong.calls import WrongCall

Arguments = dict[str, Any]
CPU = torch.device("cpu")
SETS_SIZES = ("grid", "pixels", "query", "token_bias")
"""What the others are compared with: where it is too wide, one of them is named."""


def calls() -> Iterator[WrongCall]:
    """Each tensor of each operator once too large in its last dimension, and what is wrong in other ways."""
    for operator, name, arguments in _operators():
        for argument, value in arguments.items():
            if isinstance(value, Tensor):
                made = _call(operator, name, arguments, argument, "too wide", _widened(value), ValueError)
                yield replace(made, culprit=": expected") if argument in SETS_SIZES else made
        first = next(iter(arguments))
        grid = arguments[first]
        yield _call(operator, name, arguments, first, "a dimension missing", grid[0], ValueError)
        yield _call(operator, name, arguments, first, "sparse", grid.to_sparse(), TypeError)
        yield _call(operator, name, arguments, "axis", "unknown", "time", ValueError)
        last = [argument for argument, value in arguments.items() if isinstance(value, Tensor)][-1]
        yield _call(operator, name, arguments, last, "elsewhere", arguments[last].to("meta"), TypeError)
    yield from _heads()
    yield from _passes()


def _call(
    operator: Callable[..., object],
    name: str,
    arguments: Arguments,
    argument: str,
    what: str,
    value: object,
    error: type[Exception],
) -> WrongCall:
    """`operator` with one argument replaced."""
    changed = {**arguments, argument: value}
    return WrongCall(f"{name}, {argument} {what}", error, f"{argument}: expected", lambda on: operator(**changed))


def _widened(x: Tensor) -> Tensor:
    return torch.cat([x, x[..., :1]], dim=-1)


def _operators() -> list[tuple[Any, str, Arguments]]:
    """Every operator with arguments that it takes."""
    grid, cls_token = torch.randn(2, 3, 5, 8), torch.randn(2, 8)
    attention: Arguments = {"query": grid, "key": grid.clone(), "value": grid.clone(), "cls_query": cls_token}
    attention |= {"cls_key": cls_token.clone(), "cls_value": cls_token.clone(), "heads": 2, "axis": "width"}
    class_only: Arguments = {"grid": grid, "pos": torch.randn(6, 8), "query": torch.randn(2, 2, 8)}
    class_only |= {"cls_hat": cls_token, "eps": 1e-5, "axis": "width", "valid": torch.tensor([5, 2])}
    return [
        (axis_attention, "axis_attention", attention),
        (axis_pass, "axis_pass", _axis_pass()),
        (low_rank_pass, "low_rank_pass", _low_rank_pass()),
        (class_attention, "class_attention", class_only),
    ]


def _axis_pass() -> Arguments:
    case = pass_cases.draw(Direct, "width", CPU, shape=(2, 3, 5), heads=2, dim_head=4, dim=8, mlp_dim=12).tensors
    weights = {
        name: case[f"attention.{field}"] for name, field in (("query_weight", "qkv_weight"), ("query_bias", "qkv_bias"))
    }
    weights |= {name: case[f"attention.{name}"] for name in ("out_weight", "out_bias")}
    weights |= {name: case[f"mlp.{name}"] for name in ("hidden_weight", "hidden_bias")}
    weights |= {"mlp_weight": case["mlp.out_weight"], "mlp_bias": case["mlp.out_bias"]}
    settings = {"heads": 2, "merged": False, "attention_eps": 1e-5, "mlp_eps": 1e-5, "axis": "width", "keep": False}
    tokens = {"grid": case["grid"], "cls_token": case["cls_token"], "pos": case["positions"]}
    return {**tokens, **weights, **settings, "valid": torch.tensor([5, 2])}


def _low_rank_pass() -> Arguments:
    case = pass_cases.draw(LowRank, "width", CPU, shape=(2, 3, 5), heads=2, dim_head=4, dim=8, mlp_dim=12, channels=2)
    assert case.tables is not None
    folded = vars(case.tables())
    names = ("gram", "cross", "square", "pixel_pixel", "position_pixel", "pixel_bias", "pixel_position")
    names += ("position_position", "position_bias", "position_values", "pixel_values", "out_bias", "token_weight")
    tables = {name: folded[name].detach().contiguous() for name in (*names, "token_bias")}
    layers = {name: case.tensors[f"mlp.{name}"] for name in ("hidden_weight", "hidden_bias")}
    layers |= {"mlp_weight": case.tensors["mlp.out_weight"], "mlp_bias": case.tensors["mlp.out_bias"]}
    settings = {"eps": 1e-5, "axis": "width", "dtype": torch.float32, "keep": False}
    return {"pixels": case.tensors["pixels"], **tables, **layers, **settings}


def _heads() -> Iterator[WrongCall]:
    (*_, attention), (*_, whole), _, (*_, class_only) = _operators()
    for heads in (0, -2, 3):
        yield _call(axis_attention, "axis_attention", attention, "heads", f"{heads}", heads, ValueError)
        yield _call(axis_pass, "axis_pass", whole, "heads", f"{heads}", heads, ValueError)
    yield _call(axis_attention, "axis_attention", attention, "cls_value", "missing", None, ValueError)
    yield _call(axis_pass, "axis_pass", whole, "out_bias", "missing", None, ValueError)
    yield _call(axis_pass, "axis_pass", {**whole, "out_bias": None}, "out_weight", "missing", None, ValueError)
    for operator, name, arguments in (
        (axis_pass, "axis_pass", whole),
        (class_attention, "class_attention", class_only),
    ):
        short = torch.tensor([5, 2], dtype=torch.int32)
        yield _call(operator, name, arguments, "valid", "of int32", short, TypeError)


def _passes() -> Iterator[WrongCall]:
    """The functions of `septr_fast.passes.dispatch`, on both backends."""
    case = pass_cases.draw(Merged, "width", CPU, shape=(2, 3, 5), heads=2, dim_head=4, dim=8, mlp_dim=12)
    named = case.tensors
    attention = Merged(heads=2, **pass_cases._values("attention.", named, Merged))
    mlp = Mlp(**pass_cases._values("mlp.", named, Mlp))
    right = {"grid": named["grid"], "cls_token": named["cls_token"], "pos_embedding": named["positions"]}
    right |= {"attention": attention, "mlp": mlp, "axis": "width"}
    for backend in ("torch", "triton"):
        given = {**right, "backend": backend}
        for argument, value in (
            ("axis", "depth"),
            ("grid", named["grid"][0]),
            ("cls_token", named["cls_token"][0]),
            ("cls_token", named["cls_token"][:, :4]),
            ("pos_embedding", named["positions"][1:]),
            ("pos_embedding", named["positions"][:, :4]),
        ):
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            yield _call(
                dispatch.axis_pass,
                f"dispatch.axis_pass on {backend}",
                given,
                argument,
                f"{shape}",
                value,
                ValueError,
            )
    yield _call(dispatch.axis_pass, "dispatch.axis_pass", right, "backend", "unknown", "cuda", ValueError)
    refused = {**right, "backend": "triton", "dropout": Dropout(0.5, 0.5, 0.5)}
    yield WrongCall(
        "dropout on the Triton backend", RuntimeError, "no dropout", lambda on: dispatch.axis_pass(**refused)
    )
