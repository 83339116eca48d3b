"""Which backend runs, and the reason where one cannot; import without Triton; checkpoints on disk."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.versions import needs_kernels

import septr_fast
from benchmarks.suite.shapes import SMALL
from septr_fast import SeparableTr, SepTr, kernels
from septr_fast.passes import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_takes_torch_on_a_cpu() -> None:
    assert backend.choose("auto", "axis_pass", CPU) == "torch"
    assert backend.choose("torch", "axis_pass", CUDA) == "torch"


@needs_kernels
def test_triton_gives_its_reason() -> None:
    """In a process without the interpreter: no driver here, or tensors on a CPU."""
    program = (
        "import torch, septr_fast\n"
        "model = septr_fast.SepTr(1, 8, 5, 1, 2, 8, 8, None, 16, backend='triton')\n"
        "try: model(torch.zeros(1, 1, 8, 8))\n"
        "except RuntimeError as error: print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def said(**more: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, env={**environment, **more}, capture_output=True, text=True).stdout

    expected = 'backend="triton" cannot run here: Triton kernels need a CUDA device, got cpu\n'
    assert said() == expected
    assert said(TRITON_INTERPRET="1") == expected


@needs_kernels
def test_reasons_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "PASSES", frozenset({"axis_pass"}))
    assert "no Triton kernel for low_rank_pass" in str(backend.why_not_triton("low_rank_pass", CUDA))
    backend._why_no_triton.cache_clear()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.why_not_triton("axis_pass", CUDA) == "the package triton is not installed"
    backend._why_no_triton.cache_clear()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backend.importlib.metadata, "version", lambda name: "3.5.1")
    assert backend.why_not_triton("axis_pass", CUDA) == "Triton kernels need triton 3.6 or newer, got 3.5.1"
    backend._why_no_triton.cache_clear()
    monkeypatch.setattr(backend.importlib.metadata, "version", lambda name: "3.10.0+git1")
    assert "need a CUDA device" in str(backend.why_not_triton("axis_pass", CPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.why_not_triton("axis_pass", CUDA) == "Triton kernels need an NVIDIA GPU and its driver"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backend.why_not_triton("axis_pass", CUDA) == "Triton kernels need compute capability 8.0, got 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backend.why_not_triton("axis_pass", CUDA) is None
    monkeypatch.setattr(backend, "interprets", lambda: False)
    for asked in ("1", "true", "ON"):
        monkeypatch.setenv("TRITON_INTERPRET", asked)
        assert "Triton's own interpreter is no GPU" in str(backend.why_not_triton("axis_pass", CUDA))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backend.choose("auto", "axis_pass", CUDA) == "triton"
    assert backend.choose("auto", "axis_pass", CUDA, "a reason") == "torch"
    backend._why_no_triton.cache_clear()


def test_transforms_run_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "why_not_triton", lambda name, device: None)
    chosen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        chosen.append(backend.choose("auto", "axis_pass", CUDA))
        return x.sin()

    x = torch.ones(3)
    torch.func.vmap(function)(x)
    torch.func.grad(lambda x: function(x).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        function(x)
    function(x)
    assert chosen == ["torch", "torch", "torch", "triton"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtypes": (torch.float64,)}, "not in float64"),
        ({"dim": 257}, "up to 256 features"),
        ({"head_dim": 300}, "not 300"),
        ({"dropout": True}, "no dropout"),
        ({"pass_name": "class_only_pass", "heads": 65}, "up to 64 heads, not 65"),
        ({"pass_name": "class_only_pass", "dropout": True}, None),
        ({}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_limits_of_the_kernels(changes: dict[str, Any], reason: str | None) -> None:
    sizes = {"pass_name": "axis_pass", "dtypes": (torch.bfloat16,), "dim": 256, "head_dim": 256, "heads": 5}
    found = kernels.limit(**{**sizes, "dropout": False, **changes})
    assert found is reason if reason is None else reason in str(found)


@pytest.mark.parametrize(
    ("products", "backends"),
    [
        (torch.float32, ("torch", "triton", "torch")),
        (torch.bfloat16, ("triton", "triton", "torch")),
        (torch.float16, ("triton", "triton", "torch")),
    ],
    ids=str,
)
def test_products_in_float32_are_the_vendors(
    products: torch.dtype, backends: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless Triton is insisted on; nothing is tried for them."""
    monkeypatch.setattr(backend, "why_not_triton", lambda name, device: None)
    tried: list[None] = []

    def trial() -> None:
        tried.append(None)

    found = [
        backend.choose(name, "axis_pass", CUDA, None, trial, products=products) for name in ("auto", "triton", "torch")
    ]
    assert tuple(found) == backends
    assert len(tried) == backends.count("triton")


def test_auto_says_once_why_a_gpu_is_served_by_torch(caplog: pytest.LogCaptureFixture) -> None:
    backend._logged.clear()
    with caplog.at_level(logging.INFO, logger="septr_fast"):
        for _ in range(3):
            assert backend.choose("auto", "some_pass", CUDA) == "torch"
            assert backend.choose("auto", "some_pass", CPU) == "torch"
            assert backend.choose("auto", "axis_pass", CUDA, "some limit") == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "running on plain PyTorch: this version of septr_fast has no Triton kernel for some_pass",
        "running on plain PyTorch: some limit",
    ]


def test_names() -> None:
    assert SeparableTr is SepTr
    assert {"SepTr", "SepTrBlock", "SeparableTr", "accelerate"} <= set(septr_fast.__all__)
    assert all(hasattr(septr_fast, name) for name in septr_fast.__all__)
    for size in (8, [8, 8], (8, 8)):
        assert SepTr(1, size, 35, 1, 2, 8, 8, None, 8)(torch.zeros(1, 1, 8, 8)).shape == (1, 35)


def test_imports_without_triton_or_a_gpu() -> None:
    """In a fresh interpreter where importing triton fails."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, septr_fast\n"
        "septr_fast.SepTr(1, 8, 5, 1, 2, 8, 8, None, 8)(torch.zeros(1, 1, 8, 8))\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_reference_calls_nothing_of_ours() -> None:
    program = (
        "import sys, types, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('reference', {str(Path(septr_fast.__file__).parent)!r}"
        " + '/reference.py')\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "assert not any(name.split('.')[0] == 'septr_fast' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_checkpoints_load_strictly(tmp_path: Path, kind: str) -> None:
    source = septr_fast.reference.SepTr(**SMALL["uneven pooling"])
    model = SepTr(**SMALL["uneven pooling"])
    path = tmp_path / "model"
    if kind == "torch":
        torch.save(source.state_dict(), path)
        state = torch.load(path, weights_only=True)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(source.state_dict(), path)
        state = safetensors.load_file(path)
    assert str(model.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    x = torch.randn(2, 3, 17, 11)
    torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["square", "uneven pooling"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_shapes_without_data(name: str, gradients: bool) -> None:
    with torch.device("meta"), torch.set_grad_enabled(gradients):
        model = SepTr(**SMALL[name])
        size = model.transformer[0].input_size
        logits = model(torch.empty(3, model.transformer[0].channels, *size))
    assert logits.is_meta
    assert logits.shape == (3, 35)
    assert logits.requires_grad == gradients
