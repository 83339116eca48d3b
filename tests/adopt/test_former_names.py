"""What version 0.1.0 wrote before its modules moved still loads: pickles by former names, and a checkpoint.

The files in `pickles` hold one model of seed 0, what it gives for one input, front-ends, statistics and a block.
"""

from __future__ import annotations

import importlib
import pickle
import pickletools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import septr_fast
from septr_fast import ComplexSpectrogram, LogMel, SepTr, SepTrBlock
from septr_fast.algebra.plan import Plan
from septr_fast.audio.channel_statistics import Statistics
from septr_fast.former_names import FORMER
from septr_fast.passes.attention_maps import AttentionMaps

FILES = Path(__file__).with_name("pickles")
SIZES: dict[str, Any] = {
    "input_size": (4, 6),
    "num_classes": 3,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 4,
    "dim_head": 4,
    "dim": 4,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def objects() -> dict[str, Any]:
    found: dict[str, Any] = pickle.loads((FILES / "objects.pickle").read_bytes())
    return found


def modules_of(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if type(module).__module__.startswith("septr_fast")}


@pytest.mark.parametrize("name", FORMER)
def test_former_modules_are_those_of_today(name: str) -> None:
    former = importlib.import_module(f"septr_fast.{name}")
    assert former is importlib.import_module(f"septr_fast.{FORMER[name]}")
    assert former is sys.modules[f"septr_fast.{name}"]
    assert former.__name__ == f"septr_fast.{FORMER[name]}"


@pytest.mark.parametrize("whole", [True, False], ids=["torch.save", "pickle"])
def test_models_give_what_they_gave(whole: bool, objects: dict[str, Any]) -> None:
    model = torch.load(FILES / "model.pt", weights_only=False) if whole else objects["model"]
    assert type(model) is SepTr
    assert modules_of(model) == modules_of(SepTr(**SIZES))
    with torch.no_grad():
        torch.testing.assert_close(model(objects["x"]), objects["logits"], rtol=0, atol=1e-6)
        torch.testing.assert_close(model.forward_features(objects["x"]), objects["features"], rtol=0, atol=1e-6)
    assert str(model.plan()) == str(SepTr(**SIZES).eval().plan())


def test_models_train_and_pickle_again(objects: dict[str, Any]) -> None:
    model = objects["model"].train()
    torch.optim.SGD(model.parameters(), 0.1).zero_grad()
    model(objects["x"]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    again = pickle.dumps(model)
    named = {argument for _, argument, _ in pickletools.genops(again) if isinstance(argument, str)}
    assert "septr_fast.algebra.fold_cache" in named
    assert not named & {f"septr_fast.{name}" for name in FORMER}
    assert type(pickle.loads(again)) is SepTr


def test_plans_print(objects: dict[str, Any]) -> None:
    assert type(objects["plan"]) is Plan
    assert str(objects["plan"]) == str(objects["model"].plan())


def test_maps_are_of_today(objects: dict[str, Any]) -> None:
    assert objects["maps"]
    now = objects["model"].attention_maps(objects["x"])
    assert len(now) == len(objects["maps"])
    for then, found in zip(objects["maps"], now, strict=True):
        assert type(then) is type(found) is AttentionMaps
        torch.testing.assert_close(tuple(then), tuple(found), rtol=0, atol=1e-6)


def test_front_ends_and_statistics_work(objects: dict[str, Any]) -> None:
    waveform = torch.arange(2 * 200.0).view(2, 200).sin()
    log_mel = LogMel(1000, 4, fft_size=64, hop=16, frames=6)
    spectrogram = ComplexSpectrogram(1000, fft_size=16, hop=8, frames=6)
    for name, now in (("log_mel", log_mel), ("complex", spectrogram)):
        assert type(objects[name]) is type(now)
        assert objects[name].settings == now.settings
        assert torch.equal(objects[name](waveform), now(waveform))
    assert type(objects["statistics"]) is Statistics
    assert objects["statistics"] == septr_fast.dataset_statistics([objects["x"]])


def test_a_block_works(objects: dict[str, Any]) -> None:
    block = objects["block"]
    assert type(block) is SepTrBlock
    with torch.no_grad():
        rows, token = block.eval()(objects["x"], objects["model"].cls_token)
    assert rows.shape == (2, 4, 4, 6)
    assert torch.isfinite(rows).all()
    assert torch.isfinite(token).all()


def test_a_checkpoint_of_before_loads(objects: dict[str, Any]) -> None:
    pytest.importorskip("safetensors")
    from septr_fast import checkpoints

    bundle = checkpoints.load(FILES / "words.safetensors")
    assert bundle.classes == ("down", "left", "up")
    assert bundle.front_end.settings == objects["log_mel"].settings
    with torch.no_grad():
        torch.testing.assert_close(bundle.model(objects["x"]), objects["logits"], rtol=0, atol=1e-6)
