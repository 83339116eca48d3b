"""The example that fine-tunes by `Trainer`, on folders of tones."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

from septr_fast import LogMel
from septr_fast.transformers import SepTrConfig, SepTrFeatureExtractor, SepTrForAudioClassification

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_transformers.py"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_model_gets_a_new_head_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    folder, times = tmp_path / "clips", np.arange(200) / 1000
    for name, pitch in (("low", 60), ("high", 300)):
        (folder / name).mkdir(parents=True)
        for number in range(15):
            soundfile.write(folder / name / f"{number}.wav", 0.5 * np.sin(2 * np.pi * pitch * times + number), 1000)
    torch.manual_seed(0)
    front_end = LogMel(1000, 8, fft_size=64, hop=16, frames=12)
    config = SepTrConfig(input_size=(8, 12), depth=1, heads=2, mlp_dim=16, dim_head=8, dim=16, num_labels=5)
    SepTrForAudioClassification(config).save_pretrained(tmp_path / "start")
    SepTrFeatureExtractor(front_end.settings).save_pretrained(tmp_path / "start")
    out = tmp_path / "tuned"
    words = [str(folder), "--model", str(tmp_path / "start"), "--out", str(out), "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *words])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "eval_accuracy" in capsys.readouterr().out
    ask = transformers.pipeline("audio-classification", model=str(out), device="cpu")
    answers = ask({"raw": np.sin(2 * np.pi * 60 * times).astype(np.float32), "sampling_rate": 1000})
    assert {one["label"] for one in answers} == {"low", "high"}
