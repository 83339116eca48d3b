"""Tests that need a newer PyTorch or Triton than the oldest; `make compat` lists what is skipped for that."""

from __future__ import annotations

import pytest
import torch

from septr_fast.passes import backend

FOUND = tuple(int(part) for part in torch.__version__.split(".")[:2])


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip a test below a version of PyTorch, in which `what` does not work."""
    least = tuple(int(part) for part in version.split("."))
    return pytest.mark.skipif(least > FOUND, reason=f"PyTorch {version}: {what}")


_missing = backend._why_no_triton()
needs_kernels = pytest.mark.skipif(_missing is not None, reason=str(_missing))
"""Skip a test where Triton is too old, or not there."""
