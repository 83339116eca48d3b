"""The first transformer's attention on Triton: as good as plain PyTorch, forward and backward."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from tolerance import assert_as_good
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.folding import LowRank
from septr_fast.kernels import launch
from septr_fast.kernels.low_rank import ScoreTables, coefficients, token_factors, values, values_backward
from septr_fast.torch_backend import low_rank_attention

DIM = 8
SMALL = {"low_rank_fwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 2})}
SCORE_TABLES = [field.name for field in fields(ScoreTables)]


def draw(
    length: int, channels: int, heads: int, scale: float, device: torch.device, dim: int = DIM, width: int = 16
) -> LowRank:
    """Tables of random tokens of `width` features, with scores as large as `scale`."""
    tokens = 1 + length
    pixel, constant = torch.randn(channels, width), scale * torch.randn(tokens, width)
    basis = torch.cat([pixel, constant])
    basis = (basis - basis.mean(1, keepdim=True)).double()
    gram = basis @ basis.T / width
    circuit = torch.randn(heads, width, width).double() * scale / width
    scores = basis @ circuit @ basis.T
    bias = basis @ torch.randn(heads, width, 1).double() / width**0.5
    tables = LowRank(
        heads=heads,
        token_weight=pixel.T,
        token_bias=constant,
        gram=gram[:channels, :channels],
        cross=2 * gram[channels:, :channels],
        square=gram.diagonal()[channels:] + 1e-5,
        pixel_pixel=scores[:, :channels, :channels].transpose(0, 1).flatten(1),
        position_pixel=scores[:, channels:, :channels].transpose(0, 1),
        pixel_bias=bias[:, :channels].flatten(),
        pixel_position=scores[:, :channels, channels:].transpose(0, 1).flatten(1),
        position_position=scores[:, channels:, channels:].transpose(0, 1),
        position_bias=bias[:, channels:].flatten(),
        position_values=torch.randn(dim, heads * tokens),
        pixel_values=torch.randn(dim, heads * channels),
        out_bias=torch.zeros(dim),
    )
    tensors = {name: x.to(device, torch.float32) for name, x in vars(tables).items() if isinstance(x, Tensor)}
    return LowRank(heads=heads, **tensors)


def in_float64(tables: LowRank) -> LowRank:
    tensors = {name: x.double() for name, x in vars(tables).items() if isinstance(x, Tensor)}
    return LowRank(heads=tables.heads, **tensors)


def score_tables(tables: LowRank) -> ScoreTables:
    return ScoreTables(**{name: getattr(tables, name) for name in SCORE_TABLES})


def plain(pixels: Tensor, tables: LowRank, dtype: torch.dtype) -> Tensor:
    """The output `(sequences, tokens, dim)`."""
    s = torch.nn.functional.pad(pixels, (0, 0, 1, 0)).flatten(0, 1)
    return low_rank_attention(s.to(tables.gram.dtype), tables, dtype)


def kernel(pixels: Tensor, tables: LowRank, dtype: torch.dtype) -> Tensor:
    sizes = score_tables(tables)
    body, front, _ = coefficients(token_factors(pixels, sizes), sizes, dtype)
    weight = values(tables.position_values, tables.pixel_values, sizes).to(dtype)
    body, front = body @ weight, front @ weight
    return torch.cat([front.unsqueeze(1), body.unflatten(0, (len(front), -1))], dim=1)


def check(pixels: Tensor, tables: LowRank, dtype: torch.dtype) -> None:
    oracle = plain(pixels.double(), in_float64(tables), torch.float64)
    found, expected = kernel(pixels, tables, dtype), plain(pixels, tables, dtype)
    assert_as_good({"out": found}, {"out": expected}, {"out": oracle})


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_as_good_as_plain_at_every_scale(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    pixels = scale * torch.randn(2, 3, 19, 1)
    with launch.override(SMALL):
        check(pixels.to(device), draw(19, 1, 3, scale, device), dtype)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_lengths_at_tile_edges(length: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(torch.randn(2, 2, length, 1).to(device), draw(length, 1, 2, 1.0, device), torch.float32)


@pytest.mark.parametrize("channels", [2, 3, 17])
def test_channels(channels: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(torch.randn(1, 2, 17, channels).to(device), draw(17, channels, 2, 1.0, device), torch.float32)


def test_values_backward_inverts_the_layout(device: torch.device) -> None:
    tables = draw(5, 2, 3, 1.0, device)
    sizes = score_tables(tables)
    leaves = [tables.position_values.requires_grad_(), tables.pixel_values.requires_grad_()]
    laid_out = values(*leaves, sizes)
    assert laid_out.shape == (32, DIM)
    grad = torch.randn(laid_out.shape, device=device)
    expected = torch.autograd.grad(laid_out, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(values_backward(grad, sizes), expected, strict=True))
