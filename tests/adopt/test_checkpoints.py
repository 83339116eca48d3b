"""Checkpoints: what is saved comes back bit by bit, broken files are refused by name, writing is all or nothing."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file

from septr_fast import ComplexSpectrogram, LogMel, SepTr, reference
from septr_fast.adopt import checkpoints

TINY: dict[str, Any] = {
    "input_size": (12, 20),
    "num_classes": 3,
    "depth": 1,
    "heads": 2,
    "dim_head": 8,
    "dim": 16,
    "mlp_dim": 24,
}
CLASSES = ["yes", "no", "häh?"]
FRONT_END = LogMel(8000, 12, fft_size=256, hop=80, frames=20, standardize=True)

MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": (TINY, FRONT_END),
    "one-full-head": ({**TINY, "heads": 1, "dim_head": 16}, FRONT_END),
    "pooled-width-first": (
        {**TINY, "down_sample_input": (2, 4), "first_axis": "width", "depth": 2, "dropout_tr": 0.25},
        FRONT_END,
    ),
    "class-token-too": ({**TINY, "return_cls": True}, FRONT_END),
    "complex-time-first": (
        {**TINY, "channels": 3, "input_size": (20, 17)},
        ComplexSpectrogram(8000, fft_size=32, hop=16, frames=20, time_first=True, mean=0.5, deviation=2.0),
    ),
}


@pytest.fixture
def model() -> SepTr:
    return SepTr(**TINY).eval()


@pytest.fixture
def saved(model: SepTr, tmp_path: Path) -> Path:
    """A right checkpoint."""
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, model, CLASSES, FRONT_END.settings)
    return path


def rewrite(path: Path, state: dict[str, Tensor], **changes: Any) -> None:
    """Store `state` with the description in `path`, entries of it replaced by `changes`."""
    about = json.loads(description(path))
    save_file(state, path, {"septr_fast": json.dumps({**about, **changes})})


def description(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        text: str = opened.metadata()["septr_fast"]
    return text


@pytest.mark.parametrize(("arguments", "front_end"), MODELS.values(), ids=MODELS.keys())
def test_what_is_saved_comes_back(arguments: dict[str, Any], front_end: Any, tmp_path: Path) -> None:
    model = SepTr(**arguments).eval()
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, model, CLASSES, front_end.settings)
    generator_state = torch.get_rng_state()
    bundle = checkpoints.load(path)
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert bundle.classes == tuple(CLASSES)
    assert bundle.front_end.settings == front_end.settings
    assert not bundle.model.training
    waveform = torch.randn(2, 1500)
    spectrograms = bundle.front_end(waveform)
    assert torch.equal(spectrograms, front_end(waveform))
    with torch.no_grad():
        expected, found = model(spectrograms), bundle.model(spectrograms)
    assert isinstance(found, tuple) == bool(arguments.get("return_cls"))
    for left, right in zip(expected, found, strict=True):
        assert torch.equal(left, right)
    assert checkpoints.constructor_arguments(bundle.model) == checkpoints.constructor_arguments(model)


def test_the_dtype_is_kept(tmp_path: Path, model: SepTr) -> None:
    checkpoints.save(tmp_path / "model", model.bfloat16(), CLASSES, FRONT_END.settings)
    found = checkpoints.load(tmp_path / "model").model.state_dict()
    for key, value in model.state_dict().items():
        assert found[key].dtype == torch.bfloat16
        assert torch.equal(found[key], value)


def test_arguments_are_read_off_the_model() -> None:
    given = {
        "channels": 2,
        "input_size": [12, 20],
        "num_classes": 7,
        "depth": 2,
        "heads": 3,
        "mlp_dim": 10,
        "dim_head": 4,
        "down_sample_input": [2, 4],
        "dim": 6,
        "dropout_tr": 0.5,
        "return_cls": True,
        "first_axis": "width",
    }
    assert checkpoints.constructor_arguments(SepTr(**given)) == given
    assert set(inspect.signature(SepTr).parameters) == {*given, "formulation", "backend"}


def test_the_loaded_model_can_be_trained_further(saved: Path) -> None:
    model = checkpoints.load(saved).model.train()
    model(torch.randn(2, 1, 12, 20)).sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


def test_the_reference_can_be_saved(tmp_path: Path) -> None:
    model = reference.SepTr(**TINY)
    checkpoints.save(tmp_path / "model", model, CLASSES, FRONT_END.settings)
    x = torch.randn(2, 1, 12, 20)
    torch.testing.assert_close(checkpoints.load(tmp_path / "model").model(x), model(x))


def test_the_tensors_are_the_state_dict_and_the_metadata_is_json(saved: Path, model: SepTr) -> None:
    state = load_file(saved)
    assert state.keys() == model.state_dict().keys()
    about = json.loads(description(saved))
    assert (about["version"], about["classes"], about["front_end"]) == (1, CLASSES, FRONT_END.settings)


def test_the_loaded_weights_are_not_the_file(saved: Path) -> None:
    bundle = checkpoints.load(saved)
    before = bundle.model.cls_token.clone()
    with saved.open("r+b") as file:
        file.write(b"\xff" * saved.stat().st_size)
    assert torch.equal(bundle.model.cls_token, before)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^path: expected a checkpoint, there is no .*nowhere"):
        checkpoints.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "keep", [0, 4, 100, 3000, -1], ids=["empty", "4-bytes", "in-header", "in-tensors", "last-byte"]
)
def test_truncated_file(keep: int, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"^path: expected a readable safetensors file, got .*model\.safetensors"):
        checkpoints.load(saved)


def test_garbage_and_pickles_and_folders(tmp_path: Path, model: SepTr) -> None:
    (tmp_path / "garbage").write_bytes(bytes(range(256)) * 9)
    torch.save(model.state_dict(), tmp_path / "pickle")
    (tmp_path / "folder").mkdir()
    for name in ("garbage", "pickle", "folder"):
        with pytest.raises(ValueError, match=rf"^path: expected a readable safetensors file, got .*{name}: "):
            checkpoints.load(tmp_path / name)


def test_weights_without_a_description(tmp_path: Path, model: SepTr) -> None:
    save_file(model.state_dict(), tmp_path / "bare", {"format": "pt"})
    with pytest.raises(ValueError, match=r"^path: .*bare: it has no entry 'septr_fast' in its metadata"):
        checkpoints.load(tmp_path / "bare")


def test_description_that_is_no_json(tmp_path: Path, model: SepTr) -> None:
    save_file(model.state_dict(), tmp_path / "odd", {"septr_fast": "{"})
    with pytest.raises(ValueError, match=r"^path: .*odd: its entry 'septr_fast' is not JSON"):
        checkpoints.load(tmp_path / "odd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version: expected 1 or 2, got 3"),
        ({"version": None}, "version: expected 1 or 2, got None"),
        ({"model": []}, r"model: expected a JSON dict, got \[\]"),
        ({"classes": None}, "classes: expected a JSON list, got None"),
        ({"front_end": "LogMel"}, "front_end: expected a JSON dict"),
        ({"model": {**TINY, "colour": 1}}, "model: .*colour"),
        ({"model": {**TINY, "depth": 0}}, "model: depth: expected"),
        ({"classes": ["a", "b"]}, "classes: expected 3 distinct names, got 2"),
        ({"classes": ["a", "b", "a"]}, "classes: expected 3 distinct names, got 3, of which 2 distinct"),
        ({"classes": ["a", "b", 3]}, "classes: expected names, got 3"),
        ({"classes": ["a", "b", ["c"]]}, r"classes: expected names, got \['c'\]"),
        ({"front_end": {"name": "Wave"}}, "front_end: expected the name of one of"),
        ({"front_end": {**FRONT_END.settings, "frames": 21}}, r"front_end: .* \(1, 12, 20\).* got \(1, 12, 21\)"),
        ({"front_end": {**FRONT_END.settings, "frames": None}}, "frames: expected a number"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_descriptions_that_do_not_fit(changes: dict[str, Any], message: str, saved: Path, model: SepTr) -> None:
    rewrite(saved, model.state_dict(), **changes)
    with pytest.raises(ValueError, match=rf"^path: expected a checkpoint .*model\.safetensors: {message}"):
        checkpoints.load(saved)


def test_keys_and_shapes_that_do_not_fit_are_listed(saved: Path, model: SepTr) -> None:
    state = model.state_dict()
    biases = [key for key in state if key.endswith("bias")]
    for key in biases:
        del state[key]
    state["fc.weight"] = torch.zeros(4, 16)
    state["head.weight"] = torch.zeros(1)
    rewrite(saved, state)
    with pytest.raises(ValueError, match=r"^path: .*model\.safetensors: ") as caught:
        checkpoints.load(saved)
    text = str(caught.value)
    assert "keys that are missing: transformer.0.projection.bias, " in text
    assert f" and {len(biases) - 3} more; " in text
    assert "keys that SepTr has not: head.weight; " in text
    assert text.endswith("shapes that differ: fc.weight (expected (3, 16), got (4, 16))")


@pytest.mark.parametrize("dtypes", [{torch.int64}, {torch.float32, torch.float64}], ids=["int64", "two"])
def test_dtypes_that_no_model_has(dtypes: set[torch.dtype], saved: Path, model: SepTr) -> None:
    state = {key: value.to(max(dtypes, key=str)) for key, value in model.state_dict().items()}
    state["fc.bias"] = state["fc.bias"].to(min(dtypes, key=str))
    rewrite(saved, state)
    with pytest.raises(ValueError, match=r"model\.safetensors: dtypes: expected one floating dtype, got torch\."):
        checkpoints.load(saved)


def test_saving_refuses_what_could_not_be_loaded(tmp_path: Path, model: SepTr) -> None:
    path, settings = tmp_path / "model", FRONT_END.settings
    with pytest.raises(TypeError, match=r"^model: expected a SepTr, got Sequential"):
        checkpoints.save(path, nn.Sequential(model), CLASSES, settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^classes: expected 3 distinct names, got 2"):
        checkpoints.save(path, model, CLASSES[:2], settings)
    with pytest.raises(ValueError, match=r"^front_end: expected spectrograms"):
        checkpoints.save(path, model, CLASSES, {**settings, "mels": 13})
    with pytest.raises(ValueError, match=r"^path: expected a file in an existing folder, got .*nowhere"):
        checkpoints.save(tmp_path / "nowhere" / "model", model, CLASSES, settings)
    assert not list(tmp_path.iterdir())


def test_saving_replaces_whole_files_alone(saved: Path, model: SepTr, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    other = SepTr(**TINY)

    def full(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            checkpoints.save(saved, other, CLASSES, FRONT_END.settings)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before
    checkpoints.save(saved, other, CLASSES, FRONT_END.settings)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert torch.equal(checkpoints.load(saved).model.cls_token, other.cls_token)


def test_numbers_of_numpy_are_saved(model: SepTr, tmp_path: Path) -> None:
    """As a front-end takes them, as its settings have them, and where a probability of dropout was set later."""
    settings = LogMel(
        np.int64(16000), 16, hop=500, frames=24, low=np.float32(32), high=np.float32(7000), floor=np.float32(0.5),
        log="decibel", top_db=np.float32(64), standardize=np.bool_(True),
    ).settings  # fmt: skip
    assert json.loads(json.dumps(settings)) == settings
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = np.float32(0.5)
    path = tmp_path / "numbers.safetensors"
    checkpoints.save(path, model, CLASSES, {**FRONT_END.settings, "hop": np.int64(FRONT_END.hop)})
    assert checkpoints.load(path).front_end.settings == FRONT_END.settings


def test_safetensors_is_named_where_it_is_missing(saved: Path, model: SepTr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"safetensors: pip install 'septr_fast\[predict\]'"):
        checkpoints.load(saved)
    with pytest.raises(ImportError, match=r"safetensors: pip install 'septr_fast\[predict\]'"):
        checkpoints.save(saved, model, CLASSES, FRONT_END.settings)
