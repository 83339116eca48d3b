"""The first transformer's attention on Triton: as good as plain PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from support.kernels.poison import poisoned_empty
from support.kernels.tracing import trace_accesses
from support.tolerance import assert_as_good
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.low_rank import ScoreTables, coefficients, token_factors, values, values_backward
from septr_fast.kernels.low_rank_backward import coefficients_backward, token_factors_backward

from septr_fast.algebra.folded import LowRank
from septr_fast.passes.torch.passes import low_rank_attention

DIM = 8
WIDTH = 16
SMALL = {
    "low_rank_fwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 2}),
    "low_rank_bwd": launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 2}),
}
SCORE_TABLES = [field.name for field in fields(ScoreTables)]


def draw(length: int, channels: int, heads: int, scale: float) -> dict[str, Tensor]:
    """Tokens, circuits and values as a model's weights fix them, with constants and scores as large as `scale`."""
    return {
        "pixel": torch.randn(channels, WIDTH),
        "constant": scale * torch.randn(1 + length, WIDTH),
        "circuit": torch.randn(heads, WIDTH, WIDTH) * scale / WIDTH,
        "key_bias": torch.randn(heads, WIDTH, 1) / WIDTH**0.5,
        "position_values": torch.randn(DIM, heads * (1 + length)),
        "pixel_values": torch.randn(DIM, heads * channels),
    }


def fold(weights: dict[str, Tensor]) -> LowRank:
    pixel, constant = weights["pixel"], weights["constant"]
    channels, heads = len(pixel), len(weights["circuit"])
    basis = torch.cat([pixel, constant])
    basis = basis - basis.mean(1, keepdim=True)
    gram = basis @ basis.T / WIDTH
    scores = basis @ weights["circuit"] @ basis.T
    bias = basis @ weights["key_bias"]
    return LowRank(
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
        position_values=weights["position_values"],
        pixel_values=weights["pixel_values"],
        out_bias=torch.zeros(DIM, dtype=pixel.dtype, device=pixel.device),
    )


def score_tables(tables: LowRank) -> ScoreTables:
    return ScoreTables(**{name: getattr(tables, name) for name in SCORE_TABLES})


def plain(pixels: Tensor, tables: LowRank, dtype: torch.dtype) -> Tensor:
    """The output `(sequences, tokens, dim)`."""
    s = torch.nn.functional.pad(pixels, (0, 0, 1, 0)).flatten(0, 1)
    return low_rank_attention(s.to(tables.gram.dtype), tables, dtype)


class KernelAttention(torch.autograd.Function):
    """`plain` by kernels, with their gradients of the pixels and of what fixes the scores."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, pixels: Tensor, *fixed: Tensor) -> Tensor:
        tables = ScoreTables(*fixed)
        factors = token_factors(pixels, tables)
        body, front, ctx.statistics = coefficients(factors, tables, weight.dtype)
        ctx.factors, ctx.rows = factors, (body, front)
        ctx.save_for_backward(weight, pixels, *fixed)
        return torch.cat([(front @ weight).unsqueeze(1), (body @ weight).unflatten(0, (len(front), -1))], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, pixels, *fixed = ctx.saved_tensors
        tables = ScoreTables(*fixed)
        body, front = grad[:, 1:].flatten(0, 1), grad[:, 0]
        grad_weight = ctx.rows[0].t() @ body + ctx.rows[1].t() @ front
        body, front = (weight @ body.t()).t(), (front @ weight.t()).repeat_interleave(2, 1)[:, ::2]
        grad_factors, *rest = coefficients_backward(body, front, ctx.factors, ctx.statistics, tables)
        found, grad_pixels = token_factors_backward(grad_factors, pixels, ctx.factors, tables)
        found |= dict(zip(("pixel_position", "position_position", "position_bias"), rest, strict=True))
        return grad_weight, grad_pixels, *(found[name] for name in SCORE_TABLES)


def kernel(pixels: Tensor, tables: LowRank, dtype: torch.dtype) -> Tensor:
    fixed = score_tables(tables)
    weight = values(tables.position_values, tables.pixel_values, fixed).to(dtype)
    return KernelAttention.apply(weight, pixels, *(getattr(tables, name) for name in SCORE_TABLES))


def step(
    attend: Callable[..., Tensor], pixels: Tensor, weights: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in {"pixels": pixels, **weights}.items()}
    out = attend(leaves["pixels"], fold(leaves), dtype)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, list(leaves.values()), grad.to(out))
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def check(pixels: Tensor, weights: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    pixels, weights = pixels.to(device), {name: x.to(device) for name, x in weights.items()}
    exact = {name: x.double() for name, x in weights.items()}
    oracle = step(plain, pixels.double(), exact, torch.float64)
    assert_as_good(step(kernel, pixels, weights, dtype), step(plain, pixels, weights, dtype), oracle)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_as_good_as_plain_at_every_scale(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    pixels = scale * torch.randn(2, 4, 19, 1)
    with launch.override(SMALL):
        check(pixels, draw(19, 1, 3, scale), dtype, device)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_lengths_at_tile_edges(length: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(torch.randn(2, 3, length, 1), draw(length, 1, 2, 1.0), torch.float32, device)


@pytest.mark.parametrize("channels", [2, 3, 17])
def test_channels(channels: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(torch.randn(2, 2, 17, channels), draw(17, channels, 2, 1.0), torch.float32, device)


def test_shipped_configuration(device: torch.device) -> None:
    check(torch.randn(1, 2, 130, 1), draw(130, 1, 1, 1.0), torch.float32, device)


def test_strided_pixels(device: torch.device) -> None:
    pixels = torch.randn(5, 17, 3, 2).permute(3, 2, 1, 0)[:, :, :, 1:4]
    with launch.override(SMALL):
        check(pixels, draw(17, 3, 2, 1.0), torch.float16, device)


def forward_and_backward(pixels: Tensor, tables: ScoreTables) -> list[Tensor]:
    factors = token_factors(pixels, tables)
    body, front, statistics = coefficients(factors, tables, torch.float32)
    grads = torch.linspace(-1, 1, body.numel()).view_as(body), torch.linspace(-1, 1, front.numel()).view_as(front)
    grad, *rest = coefficients_backward(*grads, factors, statistics, tables)
    return [body, front, statistics, grad.r, grad.u, grad.query, *rest]


def test_writes_every_value_once_and_nothing_else(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("accesses are traced by the interpreter alone")
    tables = score_tables(fold(draw(18, 2, 3, 1.0)))
    with launch.override(SMALL), poisoned_empty(), trace_accesses() as trace:
        results = forward_and_backward(torch.randn(1, 3, 18, 2), tables)
    trace.assert_clean()
    assert not any(result.isnan().any() for result in results)
    assert not results[0][:, 3 * (1 + 18 + 2) :].any()


def test_same_bits_in_any_order_of_programs(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the order of programs is the device's own")
    from support.kernels.interpreter import permuted_programs

    tables, pixels = score_tables(fold(draw(18, 1, 2, 1.0))), torch.randn(1, 3, 18, 1)
    with launch.override(SMALL):
        expected = forward_and_backward(pixels, tables)
        with permuted_programs(0):
            found = forward_and_backward(pixels, tables)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_empty_batch(device: torch.device) -> None:
    tables = score_tables(fold(draw(5, 1, 2, 1.0)))
    body, front, _, grad_r, *rest = forward_and_backward(torch.randn(0, 3, 5, 1), tables)
    assert body.shape == (0, 16)
    assert front.shape == (0, 16)
    assert grad_r.shape == (0, 6)
    assert not any(gradient.any() for gradient in rest)


def test_values_backward_inverts_the_layout() -> None:
    weights = draw(5, 2, 3, 1.0)
    sizes = score_tables(fold(weights))
    leaves = [weights["position_values"].requires_grad_(), weights["pixel_values"].requires_grad_()]
    laid_out = values(*leaves, sizes)
    assert laid_out.shape == (32, DIM)
    grad = torch.randn(laid_out.shape)
    expected = torch.autograd.grad(laid_out, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(values_backward(grad, sizes), expected, strict=True))
