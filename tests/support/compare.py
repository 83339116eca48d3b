"""Helpers of the tests: the same step through two models, and how far the results are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from septr_fast import SepTr, reference


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`, in float64; NaN counts as infinite."""
    result, expected = result.detach().double(), expected.detach().double()
    assert result.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    error = ((result - expected).norm() / expected.norm().clamp_min(1e-30)).item()
    return error if error == error else float("inf")


def pair(config: dict[str, Any], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.Module, SepTr]:
    """A reference and a `SepTr` with the same parameters, norms and biases away from their starting values."""
    expected = reference.SepTr(**config).to(dtype)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif name.endswith("norm.weight"):
                parameter.normal_(1, 0.25)
    model = SepTr(**config, **options).to(dtype)
    model.load_state_dict(expected.state_dict())
    return expected, model


def spectrograms(config: dict[str, Any], batch: int, dtype: torch.dtype = torch.float64, scale: float = 1.5) -> Tensor:
    """Normal inputs `(batch, channels, height, width)` for a model of `config`."""
    size = reference.size_pair(config.get("input_size", (128, 128)), "input_size")
    return scale * torch.randn(batch, config.get("channels", 1), *size, dtype=dtype)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Logits, the input's gradient and every parameter's, from a fixed gradient of the logits."""
    x = x.clone().requires_grad_()
    logits = model(x)
    direction = torch.linspace(-1, 1, max(1, logits.numel()), dtype=logits.dtype)[: logits.numel()].view_as(logits)
    named = dict(model.named_parameters())
    values = torch.autograd.grad(logits, [x, *named.values()], direction)
    return dict(zip(["logits", "input", *named], [logits, *values], strict=True))


def worst(results: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error and where it is."""
    assert results.keys() == expected.keys()
    return max((relative_error(results[name], expected[name]), name) for name in expected)
