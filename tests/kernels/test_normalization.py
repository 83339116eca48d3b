"""Normalization on Triton, forward and backward, with positions and without, in any strides."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.normalization import normalize, normalize_backward
from support.kernels.normalization_cases import DTYPES, EPS, SMALL, check, draw, kernel


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_good_as_plain_at_every_scale(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 18, 24), device, dtype, dtype, scale))


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16])
def test_residual_stream_of_another_dtype(compute: torch.dtype, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 18, 24), device, torch.float32, compute))


@pytest.mark.parametrize("length", [1, 15, 16, 17])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tokens_at_tile_edges(rows: int, length: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((1, rows, length, 16), device))


def test_variance_that_overflows(device: torch.device) -> None:
    """A token whose variance is infinite is NaN and not zero; its gradient too, and no other token's."""
    case = draw((1, 1, 5, 8), device)
    case.x[0, 0, 2, 3] = 1e20
    grad_x = torch.empty_like(case.x)
    normalize_backward(case.grad_hat, case.x, case.pos, case.residual_grad, EPS, grad_x)
    for found in (normalize(case.x, case.pos, EPS, torch.float32), grad_x):
        assert found.isnan().any(-1).flatten().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dim", [1, 3, 17, 64, 100, 256])
def test_any_number_of_features(dim: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((1, 2, 5, dim), device))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_inputs_in_any_strides(layout: str, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 17, 20), device, layout=layout))


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
def test_gradient_written_in_any_strides(layout: str, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 17, 20), device), layout)


@pytest.mark.parametrize("absent", ["pos", "residual_grad"])
def test_optional_operands(absent: str, device: torch.device) -> None:
    case = draw((2, 2, 5, 20), device)
    setattr(case, absent, None)
    with launch.override(SMALL):
        check(case)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_without_eps_padding_stays_out_of_the_sums(device: torch.device) -> None:
    case = draw((1, 3, 5, 20), device)
    case.pos = torch.zeros(5, 20, device=device)
    with launch.override(SMALL):
        check(case, eps=0.0)


def test_large_mean(device: torch.device) -> None:
    case = draw((1, 2, 5, 64), device)
    case.x = case.x + 1000
    with launch.override(SMALL):
        check(case)


@pytest.mark.parametrize("dim", [64, 256])
def test_shipped_configuration(dim: int, device: torch.device) -> None:
    check(draw((2, 3, 33, dim), device))


def test_same_bits_in_every_run(device: torch.device) -> None:
    case = draw((2, 3, 17, 20), device)
    with launch.override(SMALL):
        first, second = kernel(case), kernel(case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_tokens(device: torch.device) -> None:
    case = draw((0, 3, 5, 16), device)
    results = kernel(case)
    assert results["hat"].shape == (0, 3, 5, 16)
    assert torch.equal(results["grad_pos"], torch.zeros(5, 16, device=device))


def test_too_many_features(device: torch.device) -> None:
    with pytest.raises(LookupError, match=r"normalize for sm_.*257 features"):
        normalize(torch.zeros(1, 1, 1, 257, device=device), None, EPS, torch.float32)
