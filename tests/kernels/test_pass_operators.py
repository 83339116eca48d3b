"""The passes as registered operators: schemas and fakes, counted work, what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from septr_fast.kernels import axis_pass, launch, low_rank_pass
from septr_fast.kernels import axis_pass_operator as axis_operator
from septr_fast.kernels import low_rank_pass_operator as low_rank_operator
from septr_fast.kernels.low_rank import ScoreTables
from septr_fast.kernels.passes import Layers
from support.kernels.pass_cases import TILES, Case, draw

from septr_fast.algebra.folded import Direct, LowRank, Merged

EPS = 1e-5
EITHER = pytest.mark.parametrize("kind", [Merged, Direct], ids=["merged", "direct"])
ANY = pytest.mark.parametrize("kind", [Merged, Direct, LowRank], ids=["merged", "direct", "low-rank"])
META = torch.device("meta")
SIZES: dict[Any, dict[str, Any]] = {
    Merged: {"shape": (2, 3, 16), "dim": 32, "heads": 3, "mlp_dim": 48},
    Direct: {"shape": (2, 3, 16), "dim": 32, "heads": 3, "dim_head": 16, "mlp_dim": 48},
    LowRank: {"shape": (2, 3, 13), "dim": 32, "heads": 4, "mlp_dim": 48, "channels": 2},
}
"""Of which no tile and no row of coefficients has padding."""


@pytest.fixture(autouse=True)
def _small_tiles() -> Iterator[None]:
    with launch.override(TILES):
        yield


def weights_of(case: Case) -> axis_pass.Weights:
    given = case.tensors
    names = ("query", "out") if case.kind is Merged else ("qkv", "out")
    attention = [given.get(f"attention.{name}_{what}") for name in names for what in ("weight", "bias")]
    return axis_pass.Weights(*attention, *layers_of(case))


def layers_of(case: Case) -> list[Tensor]:
    return [case.tensors[f"mlp.{name}_{what}"] for name in ("hidden", "out") for what in ("weight", "bias")]


def tables_of(case: Case) -> low_rank_pass.Tables:
    assert case.tables is not None
    parameters = {name.removeprefix("attention."): x for name, x in case.tensors.items() if "attention." in name}
    folded = torch.func.functional_call(case.tables, parameters, ())
    score_names = ScoreTables.__dataclass_fields__
    scores = ScoreTables(**{name: getattr(folded, name) for name in score_names})
    others = (folded.position_values, folded.pixel_values, folded.out_bias, folded.token_weight, folded.token_bias)
    return low_rank_pass.Tables(scores, *others, Layers(*layers_of(case)))


def arguments_of(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """The operator and its arguments, the tensors detached."""
    given = case.tensors
    if case.kind is LowRank:
        tensors = [given["pixels"], *(x.detach() for x in tables_of(case).tensors.values())]
        return low_rank_operator.low_rank_pass, (*tensors, EPS, case.axis, case.dtype, True)
    tensors = [given["grid"], given["cls_token"], given["positions"], *vars(weights_of(case)).values()]
    return axis_operator.axis_pass, (*tensors, case.heads, case.kind is Merged, EPS, EPS, case.axis, True)


def leaves(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x for x in arguments)


def backward_of(case: Case, arguments: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The operator of the gradients, and its arguments."""
    gradients = [torch.ones_like(x) for x in results[:2]]
    if case.kind is LowRank:
        pixels, *tables = arguments[:19]
        return low_rank_operator.low_rank_pass_backward, (
            *(*gradients, pixels, tables, *results[2:]),
            *(EPS, case.axis, True),
        )
    return axis_operator.axis_pass_backward, (*gradients, *arguments[:11], *results[2:], *arguments[11:16])


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@ANY
def test_registered_operators(kind: Any, layout: str, device: torch.device) -> None:
    case = draw(kind, "height" if layout == "contiguous" else "width", device, shape=(2, 2, 3), heads=1, mlp_dim=8)
    if layout == "transposed":
        case = case.changed(lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x)
    operator, arguments = arguments_of(case)
    torch.library.opcheck(operator, leaves(arguments))
    operator, arguments = backward_of(case, arguments, operator(*arguments))
    torch.library.opcheck(operator, arguments)


def test_registered_operator_of_one_full_head(device: torch.device) -> None:
    """Its weights lack two of the tensors."""
    case = draw(Direct, "width", device, shape=(1, 2, 3), heads=1, dim_head=24)
    operator, arguments = arguments_of(case)
    assert arguments.count(None) == 2
    torch.library.opcheck(operator, leaves(arguments))


@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stacked"])
@ANY
def test_gradients_within_autocast_are_those_without(kind: Any, stacked: bool, device: torch.device) -> None:
    operator, arguments = arguments_of(draw(kind, "width", device, **SIZES[kind]))
    arguments = leaves(arguments)
    wanted = [x for x in arguments if isinstance(x, Tensor)]
    out = operator(*arguments)[0]
    grad = torch.ones_like(out[None].expand(2, *out.shape) if stacked else out)

    def gradients() -> tuple[Tensor | None, ...]:
        options = {"retain_graph": True, "allow_unused": True, "is_grads_batched": stacked}
        return torch.autograd.grad(out, wanted, grad, **options)

    expected = gradients()
    with torch.autocast(device.type, torch.bfloat16):
        found = gradients()
    for left, right in zip(found, expected, strict=True):
        assert (left is None) == (right is None)
        assert left is None or torch.equal(left, right)


@ANY
def test_differentiating_twice_is_refused(kind: Any, device: torch.device) -> None:
    operator, arguments = arguments_of(draw(kind, "width", device, shape=(1, 2, 3)))
    arguments = leaves(arguments)
    out = operator(*arguments)[0]
    (gradient,) = torch.autograd.grad(out.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r'_pass cannot be differentiated twice on .*backend="torch"'):
        gradient.sum().backward()


@ANY
def test_gradients_need_what_was_to_be_kept(kind: Any, device: torch.device) -> None:
    operator, arguments = arguments_of(draw(kind, "width", device, shape=(1, 2, 3)))
    arguments = (*leaves(arguments)[:-1], False)
    with pytest.raises(RuntimeError, match="_pass: keep=True is needed where gradients are asked for"):
        operator(*arguments)
    with torch.no_grad():
        assert [x.numel() for x in operator(*arguments)[2:]] == [0, 0]


def counted(case: Case) -> tuple[int, int]:
    """What PyTorch counts of a forward and a backward pass by the operators' formulas."""
    operator, arguments = arguments_of(case)
    arguments = leaves(arguments)
    with FlopCounterMode(display=False) as counter:
        results = operator(*arguments)
        forward = counter.get_total_flops()
        torch.autograd.backward(results[:2], [torch.ones_like(x) for x in results[:2]])
    return forward, counter.get_total_flops() - forward


def done(call: Any) -> tuple[int, Any]:
    """The matrix products of `call` that PyTorch counts, with those of the kernels, and its result."""
    with launch.record(90) as launches, FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops() + sum(x.flops for x in launches), result


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("fused", [0, 1], ids=["in parts", "fused"])
@EITHER
def test_work_of_an_axis_pass(kind: Any, fused: int, axis: str) -> None:
    """The formulas count what is done, the class token's key among the keys; kernels multiply by it without tiles.

    PyTorch does not count products that are added in place: that of the merged form's queries, backward.
    """
    case = draw(kind, axis, META, torch.bfloat16, **SIZES[kind])
    (batch, rows, length), dim = SIZES[kind]["shape"], SIZES[kind]["dim"]
    settings = axis_pass.Settings(case.heads, kind is Merged, EPS, EPS, axis)
    given, weights = case.tensors, weights_of(case)
    inputs = (given["grid"], given["cls_token"], given["positions"], weights, settings)
    with launch.override({"attention_form": launch.Config({"FUSED": fused})}):
        forward, results = done(lambda: axis_pass.forward(*inputs, True))
    backward, _ = done(lambda: axis_pass.backward(*results[:2], *inputs, *results[2:]))
    assert weights.out_weight is not None
    class_key = 2 * batch * rows * (1 + length) * weights.out_weight.shape[1]
    in_place = 2 * batch * rows * length * dim * weights.query_weight.shape[0] if kind is Merged else 0
    assert counted(case) == (forward + 2 * class_key, backward + 9 * class_key + in_place)


@pytest.mark.parametrize("axis", ["height", "width"])
def test_work_of_a_low_rank_pass(axis: str) -> None:
    """The formulas count scores and coefficients too, which the kernel makes without tiles."""
    case = draw(LowRank, axis, META, torch.bfloat16, **SIZES[LowRank])
    (batch, rows, length), dim = SIZES[LowRank]["shape"], SIZES[LowRank]["dim"]
    heads, channels = case.heads, SIZES[LowRank]["channels"]
    tables = tables_of(case)
    pixels = case.tensors["pixels"]
    forward, results = done(lambda: low_rank_pass.forward(pixels, tables, EPS, axis, torch.bfloat16, True))
    backward, _ = done(lambda: low_rank_pass.backward(*results[:2], pixels, tables, EPS, axis, *results[2:], True))
    scores = 2 * batch * rows * (1 + length) * heads * channels * 3 * (1 + length)
    class_token = 2 * batch * rows * channels * dim
    of_forward, of_backward = counted(case)
    assert of_forward == forward + scores + class_token
    assert 0.85 * of_backward < backward < of_backward
