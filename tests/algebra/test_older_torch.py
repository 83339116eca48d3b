"""What stands in for functions that older versions of PyTorch do not have."""

from __future__ import annotations

import dataclasses
import importlib.metadata

import pytest
import torch
from support.versions import needs_torch

from septr_fast.algebra import older_torch
from septr_fast.algebra.plan import Step, TransformerShape
from septr_fast.passes import backend

STEP = Step("block 0", TransformerShape("width", 3, 4, 8, 2, 4, 8), "merged")


def test_replace_is_that_of_dataclasses() -> None:
    found = older_torch.replace(STEP, formulation="direct")
    assert found == dataclasses.replace(STEP, formulation="direct")
    assert older_torch.replace(STEP) == STEP


def test_exporting_is_seen_with_and_without_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    assert older_torch.exports() is False
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True, raising=False)
    assert older_torch.exports() is True
    monkeypatch.delattr(torch.compiler, "_is_exporting_flag")
    monkeypatch.setattr(torch.export, "_trace", type("Trace", (), {"_EXPORT_FLAGS": None}), raising=False)
    assert older_torch.exports() is False
    monkeypatch.setattr(torch.export, "_trace", type("Trace", (), {"_EXPORT_FLAGS": {"non-strict"}}))
    assert older_torch.exports() is True


@needs_torch("2.8", "cores that take chunks of their own in a training step's direct and low-rank passes")
def test_hooks_on_saved_tensors_are_seen_or_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert older_torch.saves_by_hooks() is False
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert older_torch.saves_by_hooks() is True
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    assert older_torch.saves_by_hooks() is True


@pytest.mark.parametrize(("version", "refused"), [("2.9.1+cu128", True), ("2.10.0", False), ("2.13.0+cpu", False)])
def test_kernels_need_a_newer_pytorch_than_the_package(
    version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.6.0")
    reason = backend._why_no_triton.__wrapped__()
    assert reason == (f"Triton kernels need PyTorch 2.10 or newer, got {version}" if refused else None)
