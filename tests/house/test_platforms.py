"""What other machines lack, stood in for where none is here: float64 on a Mac's GPU, waiting for folders on Windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from septr_fast import ComplexSpectrogram, LogMel
from septr_fast.audio.channel_statistics import in_float64
from training import state


def test_a_macs_gpu_is_left_before_float64() -> None:
    with FakeTensorMode():
        found = in_float64(torch.zeros(3, device="mps"))
    assert (found.device.type, found.dtype) == ("cpu", torch.float64)


@pytest.mark.parametrize("kind", [LogMel, ComplexSpectrogram])
def test_front_ends_are_made_on_the_cpu_whatever_the_default(kind: Any) -> None:
    """PyTorch's default device may be one without float64: nothing is computed there, finished tables are moved."""
    computed: list[torch.device] = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                computed.append(result.device)
            return result

    with torch.device("meta"), Watched():
        kind(16000)
    assert {device.type for device in computed} <= {"cpu"}


def test_folders_are_not_waited_for_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    opened: list[Any] = []
    monkeypatch.setattr(state.os, "open", lambda path, flags: opened.append(path) or 0)
    monkeypatch.setattr(state.os, "fsync", lambda number: None)
    monkeypatch.setattr(state.os, "close", lambda number: None)
    for name, expected in (("nt", [file]), ("posix", [file, tmp_path])):
        opened.clear()
        monkeypatch.setattr(state.os, "name", name)
        state._to_disk(file)
        state._to_disk(tmp_path)
        monkeypatch.setattr(state.os, "name", "posix")
        assert opened == expected
