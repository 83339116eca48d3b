"""Another input size: positions interpolated, everything else as it was; loading at another size on request alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from torch import Tensor

from benchmarks.suite.shapes import SMALL
from septr_fast import ComplexSpectrogram, LogMel, SepTr, SepTrBlock, reference
from septr_fast.adopt import checkpoints
from septr_fast.audio import front_ends
from septr_fast.resizing import resize_state, resize_table

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG: dict[str, Any] = {**SMALL["square"], "channels": 2, "input_size": (8, 12), "num_classes": 5}
POOLED: dict[str, Any] = SMALL["uneven pooling"]
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "longer": (CONFIG, (8, 21)),
    "both": (CONFIG, (13, 5)),
    "to one token": (CONFIG, (1, 1)),
    "width first": ({**CONFIG, "first_axis": "width"}, (11, 12)),
    "pooled": (POOLED, (26, 7)),
    "one block": ({**CONFIG, "depth": 1}, (9, 9)),
}


def interpolated(table: Tensor, length: int) -> Tensor:
    """The positions by NumPy: old and new tokens at the middles of equal intervals of one axis."""
    front, old = table[0, 0, :1], table[0, 0, 1:].numpy()
    places, wanted = ((np.arange(count) + 0.5) / count for count in (len(old), length))
    columns = [np.interp(wanted, places, column) for column in old.T]
    return torch.cat([front, torch.from_numpy(np.stack(columns, axis=1)).to(table.dtype)])[None, None]


def tokens(config: dict[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    pool = config.get("down_sample_input", (1, 1))
    return size[0] // pool[0], size[1] // pool[1]


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 10, 37])
@pytest.mark.parametrize("old", [1, 2, 5, 16])
def test_positions_are_interpolated_and_the_class_tokens_kept(old: int, length: int) -> None:
    table = torch.randn(1, 1, 1 + old, 3, dtype=torch.float64)
    found = resize_table(table, length)
    assert torch.equal(found[:, :, 0], table[:, :, 0])
    torch.testing.assert_close(found, interpolated(table, length), rtol=0, atol=1e-14)
    assert (found is table) == (old == length)


def test_half_precision_is_rounded_once() -> None:
    table = torch.randn(1, 1, 8, 64).bfloat16()
    assert torch.equal(resize_table(table, 19), resize_table(table.float(), 19).bfloat16())


@pytest.mark.parametrize(
    ("table", "length", "message"),
    [
        (torch.zeros(1, 1, 4, 2), 0, "length: expected a positive int, got 0"),
        (torch.zeros(1, 4, 2), 3, r"table: expected positions \(1, 1, 1 \+ length, dim\), got \(1, 4, 2\)"),
        (torch.zeros(1, 1, 1, 2), 3, r"table: .* got \(1, 1, 1, 2\)"),
    ],
    ids=["no length", "dimensions", "class token alone"],
)
def test_tables_and_lengths_that_cannot_be(table: Tensor, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_table(table, length)


@pytest.mark.parametrize(("config", "size"), CASES.values(), ids=CASES)
def test_a_resized_model_is_one_built_at_that_size(config: dict[str, Any], size: tuple[int, int]) -> None:
    expected, model = pair(config)
    with torch.no_grad():
        model(spectrograms(config, 1))
    old = dict(model.named_parameters())
    model.resize_positions(list(size))
    wanted = reference.SepTr(**{**config, "input_size": size}).double()
    lengths = dict(zip("hw", tokens(config, size), strict=True))
    state = {
        key: interpolated(value, lengths[key[-1]]) if "pos_embedding" in key else value
        for key, value in expected.state_dict().items()
    }
    wanted.load_state_dict(state)
    x = spectrograms({**config, "input_size": size}, 2)
    assert worst(gradients(model, x), gradients(wanted, x))[0] < 1e-10
    with torch.no_grad():
        assert relative_error(model.eval()(x), wanted(x)) < 1e-12
    assert list(dict(model.named_parameters())) == list(old)
    changed = {name for name, parameter in model.named_parameters() if parameter is not old[name]}
    assert changed == {name for name in old if state[name].shape != old[name].shape}
    assert model.plan() == SepTr(**{**config, "input_size": size}).double().plan()
    arguments = checkpoints.constructor_arguments(model)
    assert arguments == checkpoints.constructor_arguments(wanted)
    with pytest.raises(ValueError, match="x: expected input_size"):
        model(spectrograms({**config, "input_size": (size[0], size[1] + 1)}, 1))


def test_a_block_alone() -> None:
    block = SepTrBlock(3, 8, heads=2, dim_head=4, mlp_dim=8, down_sample_input=2, project=True, dim=8).double()
    block.resize_positions((11, 6))
    wanted = reference.SepTrBlock(3, (11, 6), 2, 8, 4, 2, project=True, dim=8).double()
    wanted.load_state_dict(block.state_dict())
    x, cls_token = torch.randn(2, 3, 11, 6, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)
    for ours, theirs in zip(block(x, cls_token), wanted(x, cls_token), strict=True):
        assert relative_error(ours, theirs) < 1e-12


def test_the_same_size_changes_nothing() -> None:
    for config, size in ((CONFIG, CONFIG["input_size"]), (POOLED, (15, 10))):
        model = SepTr(**config)
        before, values = dict(model.named_parameters()), {k: v.clone() for k, v in model.state_dict().items()}
        model.resize_positions(size)
        assert all(parameter is before[name] for name, parameter in model.named_parameters())
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert model.blocks[0].input_size == size


def test_frozen_positions_and_dtypes_stay() -> None:
    model = SepTr(**CONFIG).bfloat16()
    model.blocks[0].pos_embedding_w.requires_grad_(False)
    model.resize_positions((8, 20))
    assert not model.blocks[0].pos_embedding_w.requires_grad
    assert model.blocks[1].pos_embedding_w.requires_grad
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "input_size: expected a positive int or two of them"),
        ((8, -1), "input_size: expected a positive int or two of them"),
        ((8, 9, 10), "input_size: expected a positive int or two of them"),
        ((8.0, 9), "input_size: expected a positive int or two of them"),
        ((17, 1), r"input_size: expected at least the pooling, \(3, 2\), got \(17, 1\)"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_change_nothing(size: Any, message: str) -> None:
    model = SepTr(**POOLED)
    before = list(model.parameters())
    with pytest.raises(ValueError, match=message):
        model.resize_positions(size)
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), before, strict=True))
    assert model(spectrograms(POOLED, 1, torch.float32)).shape == (1, 35)


@pytest.mark.parametrize("prefix", ["", "net."], ids=["bare", "inside"])
def test_a_state_dict_is_resized_for_a_model(prefix: str) -> None:
    old = torch.nn.Module()
    old.net = SepTr(**CONFIG)
    new = torch.nn.Module()
    new.net = reference.SepTr(**{**CONFIG, "input_size": (8, 15)})
    source, target = (old, new) if prefix else (old.net, new.net)
    state = source.state_dict()
    kept = dict(state)
    resized = resize_state(state, target)
    target.load_state_dict(resized, strict=True)
    old.net.resize_positions((8, 15))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
        assert (resized[key] is kept[key]) == (not key.endswith("pos_embedding_w"))
    assert all(state[key] is value for key, value in kept.items())


def test_other_faults_of_a_state_dict_are_left_to_torch() -> None:
    model = SepTr(**{**CONFIG, "input_size": (9, 9)})
    with pytest.raises(RuntimeError, match=r"size mismatch for transformer\.0\.pos_embedding_h"):
        model.load_state_dict(SepTr(**CONFIG).state_dict())
    narrow = SepTr(**{**CONFIG, "dim": 8}).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for transformer\.0\.pos_embedding_h"):
        model.load_state_dict(resize_state(narrow, model))
    state = SepTr(**CONFIG).state_dict()
    del state["cls_token"], state["transformer.1.pos_embedding_w"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"cls_token", "transformer\.1\.pos_embedding_w"'):
        model.load_state_dict(resize_state(state, model))


CLASSES = ["a", "b", "c", "d", "e"]
MEL = LogMel(8000, 8, fft_size=256, hop=80, frames=12, standardize=True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, SepTr(**{**CONFIG, "channels": 1}), CLASSES, MEL.settings)
    return path


def test_a_checkpoint_at_another_size_on_request(saved: Path) -> None:
    bundle, whole = checkpoints.load(saved, input_size=(10, 30)), checkpoints.load(saved)
    assert whole.front_end.size == (1, 8, 12)
    assert bundle.front_end.settings == {**MEL.settings, "mels": 10, "frames": 30}
    assert not bundle.model.training
    whole.model.resize_positions((10, 30))
    x = bundle.front_end(torch.randn(2, 2400))
    with torch.no_grad():
        assert torch.equal(bundle.model(x), whole.model(x))
    assert checkpoints.load(saved, input_size=12).front_end.size == (1, 12, 12)


def test_front_ends_follow_where_they_can() -> None:
    time_first = LogMel(8000, 8, fft_size=256, frames=12, time_first=True)
    assert front_ends.build(front_ends.resized(time_first.settings, (20, 9))).size == (1, 20, 9)
    complex_spectrum = ComplexSpectrogram(8000, fft_size=32, frames=20, time_first=True)
    assert front_ends.build(front_ends.resized(complex_spectrum.settings, (31, 17))).size == (3, 31, 17)
    with pytest.raises(ValueError, match=r"input_size: expected 17 along the width, .* got \(31, 18\)"):
        front_ends.resized(complex_spectrum.settings, (31, 18))


def test_sizes_that_no_checkpoint_takes(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"^input_size: expected a positive int or two of them"):
        checkpoints.load(saved, input_size=(0, 3))


def test_hub_folder_at_another_size_on_request(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from safetensors.torch import load_file, save_file

    from septr_fast.adopt import hub

    model = hub.SepTr(**CONFIG).eval()
    model.save_pretrained(tmp_path / "small")
    large = hub.SepTr.from_pretrained(str(tmp_path / "small"), input_size=(9, 20))
    assert hub.SepTr.from_pretrained(str(tmp_path / "small")).blocks[0].input_size == (8, 12)
    model.resize_positions((9, 20))
    x = torch.randn(1, 2, 9, 20)
    assert torch.equal(large(x), model(x))
    large.save_pretrained(tmp_path / "large")
    assert json.loads((tmp_path / "large" / "config.json").read_text(encoding="utf-8"))["input_size"] == [9, 20]
    assert torch.equal(hub.SepTr.from_pretrained(str(tmp_path / "large"))(x), large(x))
    file = tmp_path / "small" / "model.safetensors"
    save_file(load_file(tmp_path / "large" / "model.safetensors"), file)
    with pytest.raises(RuntimeError, match="size mismatch"):
        hub.SepTr.from_pretrained(str(tmp_path / "small"))
