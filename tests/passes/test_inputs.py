"""What is read of PyTorch's settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from septr_fast.passes.inputs import float32_products


@pytest.fixture(autouse=True)
def _set_back() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("precision", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_precision_of_float32_products(precision: str, expected: str) -> None:
    torch.set_float32_matmul_precision(precision)
    assert float32_products() == expected


@pytest.mark.parametrize("place", [torch.backends, torch.backends.cuda.matmul], ids=["everywhere", "CUDA"])
def test_precision_may_be_set_in_the_style_of_pytorch_2_9(place: Any) -> None:
    if not hasattr(place, "fp32_precision"):
        pytest.skip("this PyTorch has the older style alone")
    own, before = torch.backends.cuda.matmul, (torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    own.fp32_precision = "none"  # as it is at first: what is set everywhere counts
    try:
        for precision in ("tf32", "ieee"):
            place.fp32_precision = precision
            assert float32_products() == precision
    finally:
        torch.backends.fp32_precision, own.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
