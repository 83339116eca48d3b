"""The MLP on Triton with the residual stream and its normalization, forward and backward, in any strides."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from poison import guarded, poisoned_empty
from token_grids import arranged, strides_of
from tolerance import assert_as_good
from torch import Tensor
from tracing import trace_accesses

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.mlp import mlp, mlp_backward

EPS = 1e-2
TILES = launch.Config({"BLOCK_M": 16, "BLOCK_H": 32}, stages=2)
SMALL = {"mlp_fwd": TILES, "mlp_fwd_wide": TILES, "mlp_bwd": TILES}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PARAMETERS = ("hidden_weight", "hidden_bias", "out_weight", "out_bias")


@dataclass
class Case:
    """Operands of a forward and a backward pass."""

    x: Tensor
    pos: Tensor | None
    branch: Tensor | None
    grad_z: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def tensors(self) -> list[Tensor]:
        values = [getattr(self, field.name) for field in fields(self)]
        return [x for x in values if x is not None]

    def weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in PARAMETERS]


def draw(
    shape: tuple[int, int, int, int],
    hidden: int,
    device: torch.device,
    residual: torch.dtype = torch.float32,
    compute: torch.dtype = torch.float32,
    scale: float = 1.0,
    layout: str = "contiguous",
) -> Case:
    def normal(*sizes: int, dtype: torch.dtype = compute, factor: float = 1.0) -> Tensor:
        return (factor * torch.randn(sizes, device=device)).to(dtype)

    length, dim = shape[2:]
    return Case(
        x=arranged(normal(*shape, dtype=residual, factor=scale), layout),
        pos=normal(dim, length, dtype=residual, factor=scale).t(),
        branch=arranged(normal(*shape, factor=scale), layout),
        grad_z=arranged(normal(*shape, dtype=residual), layout),
        hidden_weight=normal(hidden, dim, factor=dim**-0.5 * max(1.0, scale)),
        hidden_bias=normal(hidden),
        out_weight=normal(dim, hidden, factor=hidden**-0.5),
        out_bias=normal(dim),
    )


def kernel(case: Case, layout: str = "contiguous", eps: float = EPS) -> dict[str, Tensor]:
    shape = tuple(case.x.shape)
    y, z, grad_y = (guarded(shape, case.x.dtype, strides_of(layout, shape), case.x.device) for _ in range(3))
    before = [x.clone() for x in case.tensors()]
    with poisoned_empty():
        mlp(case.x, case.pos, case.branch, *case.weights(), eps, y.tensor, z.tensor)
        kept = y.tensor.clone()
        gradients = mlp_backward(y.tensor, case.grad_z, *case.weights()[:3], eps, grad_y.tensor)
    for written in (y, z, grad_y):
        written.check()
    assert torch.equal(y.tensor, kept)
    assert all(torch.equal(x, y) for x, y in zip(before, case.tensors(), strict=True))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    rounded = [gradient.to(case.hidden_weight.dtype) for gradient in gradients]
    return {"y": y.tensor, "z": z.tensor, "grad_y": grad_y.tensor, **dict(zip(PARAMETERS, rounded, strict=True))}


def expected(case: Case, exact: bool, eps: float = EPS) -> dict[str, Tensor]:
    def operand(x: Tensor) -> Tensor:
        return x.detach().double() if exact else x.detach()

    y = operand(case.x)
    for summand in (case.pos, case.branch):
        y = y if summand is None else y + operand(summand)
    y.requires_grad_()
    weights = [operand(weight).requires_grad_() for weight in case.weights()]
    hidden_weight, hidden_bias, out_weight, out_bias = weights
    hat = F.layer_norm(y, y.shape[-1:], eps=eps).to(hidden_weight.dtype)
    z = y + F.linear(F.gelu(F.linear(hat, hidden_weight, hidden_bias)), out_weight, out_bias)
    gradients = torch.autograd.grad(z, [y, *weights], operand(case.grad_z))
    return {"y": y.detach(), "z": z.detach(), **dict(zip(["grad_y", *PARAMETERS], gradients, strict=True))}


def check(case: Case, layout: str = "contiguous", eps: float = EPS) -> None:
    assert_as_good(kernel(case, layout, eps), expected(case, False, eps), expected(case, True, eps))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_good_as_plain_at_every_scale(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 18, 24), 40, device, dtype, dtype, scale))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16])
def test_residual_stream_of_another_dtype(compute: torch.dtype, scale: float, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 18, 24), 40, device, torch.float32, compute, scale))


@pytest.mark.parametrize("length", [1, 15, 16, 17])
@pytest.mark.parametrize("rows", [1, 2])
def test_tokens_at_tile_edges(rows: int, length: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((1, rows, length, 16), 32, device))


@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (17, 31), (64, 32), (100, 33), (130, 64), (256, 8)])
def test_any_number_of_features(dim: int, hidden: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((1, 2, 5, dim), hidden, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_inputs_in_any_strides(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    case = draw((2, 3, 7, 20), 24, device, dtype, dtype, layout=layout)
    case.hidden_weight = case.hidden_weight.t().contiguous().t()
    case.out_weight = torch.stack([case.out_weight, case.out_weight], dim=2)[..., 0]
    case.hidden_bias, case.out_bias = (torch.stack([bias, bias], dim=1)[:, 0] for bias in case.weights()[1::2])
    with launch.override(SMALL):
        check(case)


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
def test_outputs_in_any_strides(layout: str, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 7, 20), 24, device), layout)


def test_one_token_of_every_row(device: torch.device) -> None:
    case = draw((2, 5, 1, 20), 24, device, layout="expanded")
    case.pos = None
    with launch.override(SMALL):
        check(case)


@pytest.mark.parametrize("absent", ["pos", "branch"])
def test_optional_operands(absent: str, device: torch.device) -> None:
    case = draw((2, 2, 5, 20), 24, device)
    setattr(case, absent, None)
    with launch.override(SMALL):
        check(case)


def test_y_need_not_be_kept_and_z_may_be_x(device: torch.device) -> None:
    case = draw((2, 2, 5, 20), 24, device)
    with launch.override(SMALL):
        z = kernel(case)["z"]
        mlp(case.x, case.pos, case.branch, *case.weights(), EPS, None, case.x)
    assert torch.equal(case.x, z)


def test_what_is_normalized_is_the_y_that_is_kept(device: torch.device) -> None:
    case = draw((2, 2, 5, 20), 24, device, torch.float16, torch.float16)
    with launch.override(SMALL):
        first = kernel(case)
        case.x, case.pos, case.branch = first["y"], None, None
        assert torch.equal(kernel(case)["z"], first["z"])


def test_gradient_of_another_dtype(device: torch.device) -> None:
    case = draw((2, 2, 5, 20), 24, device, torch.float16, torch.float16)
    with launch.override(SMALL):
        rounded = kernel(case)
        case.grad_z = case.grad_z.float()
        assert all(torch.equal(value, rounded[name]) for name, value in kernel(case).items())


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_without_eps_padding_stays_out_of_the_sums(device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((1, 3, 5, 20), 24, device), eps=0.0)


@pytest.mark.parametrize("dim", [64, 256])
def test_shipped_configuration(dim: int, device: torch.device) -> None:
    check(draw((1, 3, 7, dim), 80, device, torch.float16, torch.float16))


def test_same_bits_in_every_run(device: torch.device) -> None:
    case = draw((2, 3, 7, 20), 24, device)
    with launch.override(SMALL):
        first, second = kernel(case), kernel(case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accesses_stay_in_their_tensors(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("accesses are seen in the interpreter alone")
    case = draw((1, 3, 7, 20), 24, device, layout="sliced")
    y, z, grad_y = (torch.empty(case.x.shape) for _ in range(3))
    with launch.override(SMALL), trace_accesses() as trace:
        mlp(case.x, case.pos, case.branch, *case.weights(), EPS, y, z)
        mlp_backward(y, case.grad_z, *case.weights()[:3], EPS, grad_y)
    trace.assert_clean()


def test_no_tokens(device: torch.device) -> None:
    results = kernel(draw((0, 3, 5, 16), 24, device))
    assert results["z"].shape == (0, 3, 5, 16)
    assert all(not results[name].any() for name in PARAMETERS)


def test_too_many_features(device: torch.device) -> None:
    case = draw((1, 1, 1, 257), 8, device)
    with pytest.raises(LookupError, match=r"mlp_fwd for sm_.*257 features"):
        mlp(case.x, None, None, *case.weights(), EPS, None, torch.empty_like(case.x))


@pytest.mark.parametrize("arch", launch.ARCHITECTURES)
def test_no_padding_in_the_default_models_body(arch: int) -> None:
    with launch.record(arch) as launches:
        case = draw((2, 128, 128, 256), 256, torch.device("meta"), torch.bfloat16, torch.bfloat16)
        mlp(case.x, case.pos, case.branch, *case.weights(), EPS, None, case.x)
        mlp_backward(case.x, case.grad_z, *case.weights()[:3], EPS, case.x)
    forward, backward = launches
    product = 2 * case.x.numel() * 256
    assert (forward.flops, forward.executed_flops) == (2 * product, 2 * product)
    assert (backward.flops, backward.executed_flops) == (3 * product, 3 * product)
