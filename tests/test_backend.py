"""Which backend runs, and the reason where one cannot; import without Triton; checkpoints on disk."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import septr_fast
from benchmarks.shapes import SMALL
from septr_fast import SeparableTr, SepTr, backend, kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_takes_torch_on_a_cpu() -> None:
    assert backend.choose("auto", "axis_pass", CPU) == "torch"
    assert backend.choose("torch", "axis_pass", CUDA) == "torch"


def test_triton_gives_its_reason() -> None:
    reason = backend.why_not_triton("axis_pass", CPU)
    assert reason is not None
    model = SepTr(**SMALL["square"], backend="triton")
    with pytest.raises(RuntimeError, match='backend="triton" cannot run here: '):
        model(torch.zeros(1, 1, 8, 8))


def test_reasons_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PASSES", frozenset({"axis_pass"}))
    assert "no Triton kernel for low_rank_pass" in str(backend.why_not_triton("low_rank_pass", CUDA))
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.why_not_triton("axis_pass", CUDA) == "the package triton is not installed"
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    assert backend.why_not_triton("axis_pass", CPU) == "Triton kernels need tensors on a CUDA device, got cpu"
    assert backend.why_not_triton("axis_pass", CUDA) is None
    assert backend.choose("auto", "axis_pass", CUDA) == "triton"


def test_auto_says_once_why_a_gpu_is_served_by_torch(caplog: pytest.LogCaptureFixture) -> None:
    backend._logged.clear()
    with caplog.at_level(logging.INFO, logger="septr_fast"):
        for _ in range(3):
            assert backend.choose("auto", "some_pass", CUDA) == "torch"
            assert backend.choose("auto", "some_pass", CPU) == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "running on plain PyTorch: this version of septr_fast has no Triton kernel for some_pass"
    ]


def test_names() -> None:
    assert SeparableTr is SepTr
    assert set(septr_fast.__all__) == {"SepTr", "SepTrBlock", "SeparableTr"}
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
