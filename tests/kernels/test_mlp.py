"""The MLP on Triton with the residual stream and its normalization, forward and backward, in any strides."""

from __future__ import annotations

import pytest
import torch
from support.kernels.tracing import trace_accesses

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.mlp import TAIL, mlp
from septr_fast.kernels.mlp_backward import mlp_backward
from support.kernels.mlp_cases import DTYPES, EPS, PARAMETERS, RELOADING, SMALL, check, draw, kernel


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


def test_the_tail_of_the_normal_distribution_for_16_bits() -> None:
    a = torch.linspace(0, 100, 1_000_001, dtype=torch.float64)
    power = sum(factor * a**index for index, factor in enumerate(TAIL.value))
    error = (2**power - torch.special.ndtr(-a)).abs()
    assert error.max() < 6e-6
    assert (a * error).max() < 6e-6
    assert (error / torch.special.ndtr(-a))[a <= 5].max() < 1.4e-3
    assert power.diff().max() < 0


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "hidden"), [(17, 31), (64, 32)])
def test_same_bits_where_what_is_normalized_is_read_again(
    dim: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> None:
    case = draw((2, 3, 7, dim), hidden, device, torch.float32, dtype)
    with launch.override(SMALL):
        expected = kernel(case)
        with launch.override(RELOADING), launch.capture("mlp_bwd") as captured:
            found = kernel(case)
    assert [one.config.tiles["RELOAD"] for one in captured.launches] == [1]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("reloading", [False, True])
def test_accesses_stay_in_their_tensors(reloading: bool, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("accesses are seen in the interpreter alone")
    case = draw((1, 3, 7, 20), 24, device, layout="sliced")
    y, z, grad_y = (torch.empty(case.x.shape) for _ in range(3))
    with launch.override({**SMALL, **(RELOADING if reloading else {})}), trace_accesses() as trace:
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
