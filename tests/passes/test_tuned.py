"""Tuned configurations: which files the library takes, for which device, and what `info` says of them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from septr_fast.kernels import launch
from septr_fast.kernels.tables import TABLES, Row

from septr_fast.commands import info
from septr_fast.passes import backend
from septr_fast.passes.triton import tuned

pytest.importorskip("triton")

CUDA = torch.device("cuda", 0)
NAME = "NVIDIA Model X-1 80GB"
ENTRY: dict[str, Any] = {
    "kernel": "mlp_fwd",
    "itemsize": 2,
    "width": 256,
    "tiles": {"BLOCK_M": 32, "BLOCK_H": 128},
    "warps": 16,
    "stages": 3,
    "seconds": 1e-3,
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two devices of different names, as far as the library asks, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend, "device_name", lambda device: NAME if device == CUDA else "another")
    monkeypatch.setattr(backend, "capability", lambda device: 90 if device.type == "cuda" else None)
    monkeypatch.setattr(launch, "architecture", lambda device: 90 if device.type == "cuda" else launch.UNKNOWN)
    sources = list(launch._sources)
    launch.use_tuned(tuned.rows)
    yield
    launch._sources[:] = sources
    launch._tuned.clear()


def store(entry: dict[str, Any] | None = None, **about: Any) -> Path:
    file = tuned.path(NAME)
    content = {**tuned.made_for(NAME, 90), "interpreted": False, **about}
    tuned.write(file, [ENTRY if entry is None else entry], content)
    return file


def chosen(
    device: torch.device = CUDA, dtype: torch.dtype = torch.bfloat16, width: int = 256, name: str = "mlp_fwd"
) -> launch.Config:
    return launch.choose(name, device, dtype, width)


def shipped(itemsize: int = 2, width: int = 256) -> launch.Config:
    return launch.lookup("mlp_fwd", 90, itemsize, width)


def test_path_is_in_the_cache_folder(tmp_path: Path) -> None:
    assert tuned.path(NAME) == tmp_path / "septr_fast" / "tuned" / "nvidia-model-x-1-80gb.json"
    assert tuned.path("../..").parent == tmp_path / "septr_fast" / "tuned"


def test_measured_sizes_alone_are_served() -> None:
    store()
    own = launch.Config(ENTRY["tiles"], 16, 3)
    assert chosen() == chosen(dtype=torch.float16) == chosen(width=129) == own != shipped()
    assert chosen(width=128) == shipped(width=128)
    assert chosen(dtype=torch.float32) == shipped(itemsize=4)
    assert chosen(name="mlp_bwd") == launch.lookup("mlp_bwd", 90, 2, 256)


def test_another_device_is_not_served() -> None:
    store()
    assert chosen(torch.device("cuda", 1)) == shipped()
    assert chosen(torch.device("cpu")) == launch.lookup("mlp_fwd", launch.UNKNOWN, 2, 256)


def test_recordings_show_what_is_shipped() -> None:
    store()
    with launch.record(90):
        assert chosen() == shipped()


def test_overrides_come_first() -> None:
    store()
    config = launch.Config({"BLOCK_M": 16, "BLOCK_H": 16})
    with launch.override({"mlp_fwd": config}), launch.capture() as captured:
        assert chosen() == config
    assert captured.choices == [launch.Choice("mlp_fwd", 2, 256)]


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"format": 0}, "not a table of format 1"),
        ({"interpreted": True}, "the interpreter's"),
        ({"interpreted": None}, "the interpreter's"),
        ({"device": "another"}, "measured with device 'another'"),
        ({"capability": 80}, "measured with capability 80"),
        ({"triton": "3.5"}, "measured with triton '3.5'"),
        ({"kernels": "0123"}, "measured with kernels '0123'"),
    ],
    ids=str,
)
def test_foreign_files_are_refused(about: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    file = store()
    file.write_text(json.dumps({**json.loads(file.read_text()), **about}))
    refuses(reason, caplog)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": "no_such"}, "no kernel 'no_such'"),
        ({"tiles": {"BLOCK_M": 32}}, "expected tiles ['BLOCK_H', 'BLOCK_M']"),
        ({"tiles": {"BLOCK_M": 48, "BLOCK_H": 16}}, "power of two up to 4096 for BLOCK_M, got 48"),
        ({"tiles": {"BLOCK_M": True, "BLOCK_H": 16}}, "for BLOCK_M, got True"),
        ({"tiles": None}, "got None"),
        ({"warps": 3}, "power of two up to 32 for warps"),
        ({"warps": 64}, "for warps, got 64"),
        ({"stages": 0}, "stages from 1 to 8"),
        ({"itemsize": "2"}, "itemsize from 2 to 4"),
        ({"width": -1}, "width from 1"),
    ],
    ids=str,
)
def test_impossible_rows_are_refused(change: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    store({**ENTRY, **change})
    refuses(reason, caplog)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b"[" * 100_000])
def test_corrupt_files_are_refused(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store().write_bytes(content)
    refuses("", caplog)


def test_a_folder_in_place_of_the_file_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    tuned.path(NAME).mkdir(parents=True)
    refuses("", caplog)


def refuses(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="septr_fast"):
        assert [chosen() for _ in range(3)] == [shipped()] * 3
    assert len(caplog.records) == 1
    assert "is not used" in caplog.text
    assert reason in caplog.text
    assert "is not used" in info.table(CUDA)


def test_shipped_rows_pass_the_check() -> None:
    for row in TABLES:
        entry = {**row._asdict(), "archs": None}
        assert tuned._row(entry, 90) == Row(row.kernel, (90,), *row[2:])


def test_info_names_the_table() -> None:
    assert info.table(CUDA) == f"shipped for sm_90; none tuned ({tuned.path(NAME)})"
    file = store()
    assert info.table(CUDA) == f"1 tuned in {file}; the others shipped for sm_90"
    assert info.table(torch.device("cpu")) == "shipped by default, those for sm_86"


@pytest.mark.parametrize("pass_name", info.PASSES)
@pytest.mark.parametrize("interpret", ["0", "1"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_info_says_what_is_chosen(device: str, interpret: str, pass_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    name, reason = info.taken(pass_name, torch.device(device))
    assert name == backend.choose("auto", pass_name, torch.device(device))
    assert reason


@pytest.mark.parametrize("has_triton", [True, False], ids=["triton", "no triton"])
def test_info_command(has_triton: bool) -> None:
    without = "" if has_triton else "sys.modules['triton'] = None; importlib.util.find_spec = lambda *_: None; "
    program = f"import importlib.util, sys; {without}from septr_fast.__main__ import main; main(['info'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"torch      {torch.__version__}" in done.stdout
    assert 'axis_pass        torch: "auto" takes Triton on CUDA devices alone; ' in done.stdout
    assert ("the package triton is not installed" in done.stdout) is not has_triton
