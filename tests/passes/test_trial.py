"""The trial of the kernels on a device: what it finds, when it runs, what is kept of it, and what is said."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch

from septr_fast import SepTr
from septr_fast.commands import info
from septr_fast.passes import backend
from septr_fast.passes.triton import trial

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BFLOAT16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _quick_tiles() -> Iterator[None]:
    from support.kernels.pass_cases import TILES

    with launch.override(TILES):
        yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[torch.dtype]:
    """As if a GPU were there, with a cache folder of its own; collects the trials."""
    tried: list[torch.dtype] = []
    monkeypatch.setattr(trial, "_found", {})
    monkeypatch.setattr(backend, "interprets", lambda: False)
    monkeypatch.setattr(backend, "device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(backend, "capability", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "figures", lambda device, dtype: tried.append(dtype) or [RIGHT])
    return tried


RIGHT, WRONG = trial.Figure("merged", "result 1", 0.5, 1.0), trial.Figure("direct", "gradient of grid", 0.25, 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernels_do_as_pytorch_does(dtype: torch.dtype, device: torch.device) -> None:
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast(device.type, BFLOAT16):
        found = trial.figures(device, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(one.right for one in found)
    assert {one.kind for one in found} == set(trial.KINDS) - ({trial.AUTOCAST} if dtype == torch.float32 else set())
    told = {(one.kind, one.what) for one in found}
    assert {("class-only", "result 1"), ("low-rank", "gradient of pixels"), ("merged", "gradient of grid")} < told
    assert len(found) == len(told) > 60
    assert all(0 < one.allowed < 0.2 for one in found)


def off(kernel: str, operand: str) -> Callable[..., Any]:
    """A launch that leaves one kernel's result a quarter too large."""
    run = launch.run

    def wrong(described: launch.Launch, device: torch.device) -> None:
        run(described, device)
        if described.name == kernel:
            described.arguments[operand].mul_(1.25)

    return wrong


@pytest.mark.parametrize(
    ("kernel", "operand", "kind", "dtype"),
    [
        ("axis_attention_bwd_query", "grad_q_ptr", "merged", torch.float32),
        ("mlp_fwd", "z_ptr", "low-rank", torch.float32),
        ("mlp_fwd_wide", "z_ptr", trial.AUTOCAST, BFLOAT16),
        ("normalize", "hat_ptr", "merged", torch.float32),
        ("class_attention_fwd", "attended_ptr", "class-only", torch.float32),
    ],
)
def test_a_wrong_kernel_is_found(
    kernel: str, operand: str, kind: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run", off(kernel, operand))
    reason = trial.verdict(device, dtype)
    assert reason is not None
    assert f"of the {kind} pass: error " in reason
    assert "septr-fast info --test" in reason


def test_nan_is_wrong() -> None:
    assert not trial.Figure("merged", "result 1", float("nan"), 1.0).right


def test_once_for_each_dtype_and_kept(cuda: list[torch.dtype], tmp_path: Path) -> None:
    for _ in range(2):
        assert trial.why_not(CUDA, BFLOAT16) is trial.why_not(CUDA, torch.float32) is None
    assert cuda == [BFLOAT16, torch.float32]
    files = list((tmp_path / "septr_fast" / "trials").iterdir())
    kept = [json.loads(file.read_text()) for file in files]
    assert {one["dtype"] for one in kept} == {"torch.bfloat16", "torch.float32"}
    assert {one["device"] for one in kept} == {"NVIDIA H100"}
    assert all(one["kernels"] and one["ptxas"] and one["septr_fast"] for one in kept)
    trial._found.clear()
    assert trial.why_not(CUDA, BFLOAT16) is None
    assert len(cuda) == 2, "what another process has noted"


def test_other_circumstances_are_tried_anew(cuda: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.why_not(CUDA, BFLOAT16) is None
    changes: list[tuple[Any, str, Any]] = [
        (backend, "device_name", lambda device: "NVIDIA L4"),
        (backend, "driver_version", lambda: "1.2.3"),
        (trial, "_sources", lambda: "others"),
    ]
    for count, (module, name, value) in enumerate(changes, 2):
        monkeypatch.setattr(module, name, value)
        trial._found.clear()
        assert trial.why_not(CUDA, BFLOAT16) is None
        assert len(cuda) == count


def test_without_an_assembler_the_trial_says_so(cuda: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")

    def missing(arch: int) -> None:
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(compiler, "get_ptxas", missing)
    assert trial.why_not(CUDA, BFLOAT16) is None
    assert cuda == [BFLOAT16]


def test_what_others_could_have_written_counts_for_nothing(cuda: list[torch.dtype], tmp_path: Path) -> None:
    assert trial.why_not(CUDA, BFLOAT16) is None
    (tmp_path / "septr_fast" / "trials").chmod(0o777)
    trial._found.clear()
    assert trial.why_not(CUDA, BFLOAT16) is None
    assert len(cuda) == 2


def test_a_failure_falls_back_and_is_tried_again(
    cuda: list[torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "figures", lambda device, dtype: [RIGHT, WRONG])
    monkeypatch.setattr(backend, "why_not_triton", lambda pass_name, device: None)

    def choose(name: str) -> str:
        return backend.choose(name, "axis_pass", CUDA, trial=lambda: trial.why_not(CUDA, BFLOAT16))

    with caplog.at_level(logging.WARNING, "septr_fast"):
        assert [choose("auto"), choose("auto")] == ["torch", "torch"]
    (warning,) = caplog.messages
    assert "1 of 2 results are wrong, the first the gradient of grid of the direct pass: error 2.5e-01" in warning
    with pytest.raises(RuntimeError, match=r"cannot run here: their trial in torch.bfloat16 on NVIDIA H100 failed"):
        choose("triton")
    assert not (tmp_path / "septr_fast" / "trials").exists()


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("compiler", "neither gcc nor clang is here"),
        ("chosen compiler", "got no-such-compiler"),
        ("headers", "Python.h is missing: install python3-dev"),
        ("driver", "Triton finds no libcuda.so"),
        ("nothing", "OSError: .*no space"),
    ],
)
def test_what_a_launch_lacks_is_named(
    lacks: str, said: str, cuda: list[torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: torch.device, dtype: torch.dtype) -> list[trial.Figure]:
        raise OSError("compiling failed\nno space left")

    monkeypatch.setattr(trial, "figures", broken)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    if lacks == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif lacks == "chosen compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    else:
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        paths = {"include": str(tmp_path)}
        monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: paths)
        if lacks != "headers":
            (tmp_path / "Python.h").touch()
        if lacks == "driver":
            monkeypatch.delenv("TRITON_LIBCUDA_PATH")
            monkeypatch.setenv("LD_LIBRARY_PATH", "")
    reason = trial.why_not(CUDA, BFLOAT16)
    assert re.search(said, str(reason)), reason


def test_not_where_it_cannot_run_or_is_not_wanted(cuda: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.why_not(CPU, BFLOAT16) is None
    with monkeypatch.context() as patch:
        patch.setenv(trial.OFF, "0")
        assert trial.why_not(CUDA, BFLOAT16) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert trial.why_not(CUDA, BFLOAT16) is None
    assert cuda == []
    assert trial.why_not(CUDA, BFLOAT16) is None
    assert cuda == [BFLOAT16], "behind the capture"


def test_every_pass_of_a_model_asks(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    asked: list[tuple[str, torch.dtype]] = []
    monkeypatch.setattr(trial, "why_not", lambda device, dtype: asked.append((device.type, dtype)))
    options: dict[str, Any] = {"formulation": [None, "merged", "direct", None], "backend": "triton"}
    model = SepTr(1, (2, 3), 5, 2, 2, 16, 16, None, 16, **options).to(device)
    with torch.autocast(device.type, BFLOAT16):
        logits: Tensor = model(torch.randn(1, 1, 2, 3, device=device))
    assert logits.isfinite().all()
    assert asked == [(device.type, BFLOAT16)] * 4


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_info_tries_every_dtype_on_every_device(
    wrong: bool, cuda: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "text", lambda: "versions")
    assert info.run(test=True) == 0
    assert capsys.readouterr().out == "versions\n\nno kernel was tried: they need a CUDA device\n"
    monkeypatch.setattr(backend, "devices", lambda: [CPU, CUDA])
    monkeypatch.setattr(backend, "why_not_triton", lambda pass_name, device: None)
    if wrong:
        monkeypatch.setattr(trial, "figures", lambda device, dtype: [WRONG])
    assert info.run(test=True) == int(wrong)
    lines = capsys.readouterr().out.split("\n\n")[1:]
    assert [line.split(",")[1].strip() for line in lines] == ["float32", "float16", "bfloat16"]
    assert all(("1 of 1 results are wrong" if wrong else "do as PyTorch does") in line for line in lines)
    assert os.environ.get(trial.OFF) is None
