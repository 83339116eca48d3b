"""How many cores there are to share chunks, and that none is taken before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from septr_fast.passes.torch import cores

ROOT = Path(__file__).resolve().parents[2]


def test_no_thread_is_started_by_an_import() -> None:
    code = "import threading, septr_fast; assert len(threading.enumerate()) == 1, threading.enumerate()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("version", "text", "cores_of_it"),
    [
        (2, "max 100000", sys.maxsize),
        (2, "150000 100000", 2),
        (2, "50000 100000", 1),
        (1, "-1 100000", sys.maxsize),
        (1, "400000 100000", 4),
    ],
)
def test_quota_of_a_container(
    version: int, text: str, cores_of_it: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "CONTROL_GROUP", tmp_path)
    quota, period = text.split()
    (tmp_path / "cpu").mkdir()
    if version == 2:
        (tmp_path / "cpu.max").write_text(text + "\n")
    else:
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert cores._quota.__wrapped__() == cores_of_it


@pytest.mark.parametrize(
    ("threads", "quota", "count", "share"), [(64, sys.maxsize, 16, 4), (64, 2, 2, 1), (3, 8, 3, 1), (1, 4, 1, 1)]
)
def test_threads_and_what_each_may_take(
    threads: int, quota: int, count: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    assert cores.count() == count
    assert cores._Work(len, [])._share == share
