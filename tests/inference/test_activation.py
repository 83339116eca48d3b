"""What a checkpoint's logits mean: one class of a recording, or any number; and names that are any text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")

import soundfile
from safetensors import safe_open

from septr_fast import LogMel, SepTr
from septr_fast.__main__ import main
from septr_fast.adopt import checkpoints
from septr_fast.inference.explain import explain
from septr_fast.inference.prediction import Prediction, classify

RATE = 8000
FRONT_END = LogMel(RATE, 12, fft_size=256, hop=80, frames=20, standardize=True)
TINY: dict[str, Any] = {"depth": 1, "heads": 2, "dim_head": 8, "dim": 16, "mlp_dim": 16}
pytestmark = pytest.mark.usefixtures("one_thread")


def saying(logits: list[float]) -> SepTr:
    """A model that answers `logits` to everything."""
    model = SepTr(input_size=(12, 20), num_classes=len(logits), **TINY).eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor(logits))
    return model


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, torch.randn(2000).mul(0.1).numpy(), RATE, subtype="FLOAT")
    return path


def saved(tmp_path: Path, logits: list[float], activation: str | None = None, names: str = "abc") -> Path:
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, saying(logits), list(names[: len(logits)]), FRONT_END.settings, activation)
    return path


@pytest.mark.parametrize(
    ("logits", "activation", "expected"),
    [
        ([-6.0], None, [0.00247]),
        ([6.0], "sigmoid", [0.99753]),
        ([6.0, 5.5, -8.0], "sigmoid", [0.99753, 0.99593, 0.00034]),
        ([6.0, 5.5, -8.0], None, [0.62246, 0.37754, 0.0]),
        ([6.0, 5.5, -8.0], "softmax", [0.62246, 0.37754, 0.0]),
    ],
)
def test_every_reader_takes_the_activation_of_the_checkpoint(
    logits: list[float],
    activation: str | None,
    expected: list[float],
    tmp_path: Path,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(tmp_path, logits, activation)
    bundle = checkpoints.load(path)
    assert bundle.activation == (activation or ("sigmoid" if len(logits) == 1 else "softmax"))
    (found,) = classify(bundle, [clip])
    assert isinstance(found, Prediction)
    assert found.probabilities.tolist() == pytest.approx(expected, abs=1e-5)
    window = torch.zeros(FRONT_END.span)
    assert explain(bundle, window).probabilities.tolist() == pytest.approx(expected, abs=1e-5)
    assert main(["predict", str(clip), "--checkpoint", str(path)]) == 0
    assert f"a  {expected[0]:6.1%}" in capsys.readouterr().out
    assert main(["predict", str(clip), "--checkpoint", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["activation"] == bundle.activation
    assert [one["probability"] for one in report["files"][0]["classes"]] == pytest.approx(expected, abs=1e-5)
    resized = checkpoints.load(path, input_size=(12, 30))
    assert resized.activation == bundle.activation


def test_a_checkpoint_of_before_is_read_and_written_as_before(tmp_path: Path) -> None:
    """A softmax's file is of version 1; readers that know no activation refuse a sigmoid's."""
    for activation, version in ((None, 1), ("sigmoid", 2)):
        with safe_open(saved(tmp_path, [1.0, 2.0], activation), framework="pt") as opened:
            about = json.loads(opened.metadata()["septr_fast"])
        assert (about["version"], about.get("activation")) == (version, activation)


@pytest.mark.parametrize(("logits", "activation"), [([1.0, 2.0], "tanh"), ([1.0], "softmax")])
def test_other_activations_are_refused(logits: list[float], activation: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^activation: expected sigmoid, or softmax of several classes"):
        saved(tmp_path, logits, activation)
    assert not list(tmp_path.glob("*.safetensors"))


def test_names_of_classes_are_any_text(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    names = ["Ba$$in", "two\nlines", "\x1b[31mred", "not utf-8 \udcff", "日本語"]
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, saying([5.0, 4.0, 3.0, 2.0, 1.0]), names, FRONT_END.settings)
    assert main(["predict", str(clip), "--checkpoint", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "Ba$$in",
        r"two\nlines",
        r"\x1b[31mred",
        r"not utf-8 \xff",
        "日本語",
    ]
    assert main(["predict", str(clip), "--checkpoint", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"][0]["classes"]
    assert [one["name"] for one in found] == names
    assert main(["explain", str(clip), "--checkpoint", str(path), "--out", str(tmp_path / "out.png")]) == 0
