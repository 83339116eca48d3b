"""The example for PyTorch Lightning, on folders of tones, in two precisions; gradients whatever TF32 is set to."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import soundfile
import torch

from septr_fast import SepTr, checkpoints
from septr_fast.__main__ import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_lightning.py"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    times = np.arange(3000) / 16000
    for name, pitch in (("low", 300), ("high", 3000)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(10):
            wave = 0.5 * np.sin(2 * np.pi * pitch * times + number)
            soundfile.write(tmp_path / "clips" / name / f"{number}.wav", wave, 16000)
    return tmp_path / "clips"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trains_and_leaves_a_checkpoint(
    precision: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    options = ["--out", str(tmp_path / "out"), "--epochs", "2", "--precision", precision]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(folder), *options])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "accuracy " in capsys.readouterr().out
    checkpoint = tmp_path / "out" / "septr.safetensors"
    assert checkpoints.load(checkpoint).classes == ("high", "low")
    assert main(["predict", str(folder / "low" / "0.wav"), "--checkpoint", str(checkpoint)]) == 0
    assert "high" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_gradients_under_lightnings_switch(precision: str, one_thread: None) -> None:
    """A step of Lightning's gives the gradients of a plain loop, whatever TF32 is set to."""
    torch.manual_seed(0)
    model = SepTr(input_size=(8, 10), num_classes=2, depth=1, heads=2, dim_head=8, dim=16, mlp_dim=16)
    x, before = torch.randn(2, 1, 8, 10), torch.get_float32_matmul_precision()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.found = model, []

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.model(batch).square().sum()

        def on_after_backward(self) -> None:
            self.found = [parameter.grad.clone() for parameter in self.model.parameters()]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=0.1)

    module = Module()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    try:
        torch.set_float32_matmul_precision(precision)
        trainer = lightning.Trainer(max_steps=1, accelerator="cpu", barebones=False, **quiet)
        trainer.fit(module, torch.utils.data.DataLoader(x, batch_size=2))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(module.found) == len(expected)
    for found, wanted in zip(module.found, expected, strict=True):
        torch.testing.assert_close(found, wanted)
