"""Windows over long signals, and the command `predict`: batches, long files, broken files, exit statuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")

import soundfile

from septr_fast import LogMel, SepTr, predict_long
from septr_fast.__main__ import main
from septr_fast.adopt import checkpoints
from septr_fast.audio.windows import window_starts
from septr_fast.inference import prediction

RATE = 8000
CLASSES = ["yes", "no", "stop", "go"]
FRONT_END = LogMel(RATE, 12, fft_size=256, hop=80, frames=20, standardize=True)
SPAN = 20 * 80
TINY: dict[str, Any] = {"num_classes": 4, "depth": 1, "heads": 2, "dim_head": 8, "dim": 16, "mlp_dim": 16}


class Pixels(nn.Module):
    """Logits that depend on every pixel and its place; remembers the batches it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        weight = torch.linspace(-1, 1, 3 * x[0].numel(), dtype=x.dtype).sin().reshape(3, -1)
        return x.flatten(1) @ weight.T


@pytest.mark.parametrize(
    ("length", "window", "hop", "expected"),
    [
        (10, 10, 3, [0]),
        (11, 10, 3, [0, 1]),
        (13, 10, 3, [0, 3]),
        (14, 10, 3, [0, 3, 4]),
        (10, 2, 5, [0, 5, 8]),
        (3, 1, 1, [0, 1, 2]),
    ],
    ids=str,
)
def test_windows_start_every_hop_and_the_last_ends_with_the_signal(
    length: int, window: int, hop: int, expected: list[int]
) -> None:
    assert window_starts(length, window, hop) == expected


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("long", [7, 8, 20, 21])
def test_long_spectrograms_equal_a_loop_over_windows(long: int, average: str, axis: str, batch: int) -> None:
    model, x = Pixels(), torch.randn(3, 2, 5, long, dtype=torch.float64)
    x = x if axis == "width" else x.transpose(2, 3)
    answers = []
    for start in [*range(0, long - 7 + 1, 4), *([long - 7] if (long - 7) % 4 else [])]:
        cut = x[..., start : start + 7] if axis == "width" else x[:, :, start : start + 7]
        logits = model(cut)
        answers.append(logits if average == "logits" else logits.softmax(dim=1))
    expected = sum(answers) / len(answers)
    model.batches.clear()
    found = predict_long(model, x, 7, 4, average=average, axis=axis, batch=batch)
    torch.testing.assert_close(found, expected)
    assert max(model.batches) == min(batch, 3 * len(answers))
    assert sum(model.batches) == 3 * len(answers)


def test_long_spectrograms_by_the_model_with_and_without_the_class_token() -> None:
    x = torch.randn(2, 1, 12, 33)
    for return_cls in (False, True):
        model = SepTr(input_size=(12, 20), **TINY, return_cls=return_cls).eval()
        windows = [x[..., start : start + 20] for start in (0, 10, 13)]
        with torch.no_grad():
            outputs = [model(window) for window in windows]
        logits = torch.stack([out[0] if return_cls else out for out in outputs])
        found = predict_long(model, x, window=20, hop=10)
        assert not found.requires_grad
        torch.testing.assert_close(found, logits.mean(dim=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 21}, "window: expected at most the signal's length, 20, got 21"),
        ({"window": 0}, "window: expected a positive int"),
        ({"hop": 0}, "hop: expected a positive int"),
        ({"batch": 0}, "batch: expected a positive int"),
        ({"average": "votes"}, "average: expected one of logits, probabilities"),
        ({"axis": "time"}, "axis: expected one of height, width"),
        ({"x": torch.zeros(1, 5, 20)}, "x: expected"),
        ({"x": torch.zeros(0, 1, 5, 20)}, "x: expected"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_raise_with_their_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        predict_long(Pixels(), **{"x": torch.zeros(1, 1, 5, 20), "window": 7, "hop": 4, **arguments})


@pytest.fixture
def model() -> SepTr:
    return SepTr(input_size=(12, 20), **TINY).eval()


@pytest.fixture
def checkpoint(model: SepTr, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, model, CLASSES, FRONT_END.settings)
    return path


def write(path: Path, samples: int, rate: int = RATE, seed: int = 0) -> Tensor:
    """Write noise `(samples,)` and return it."""
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1
    soundfile.write(path, waveform.numpy(), rate, subtype="FLOAT")
    return waveform


def logits_of(model: SepTr, waveform: Tensor) -> Tensor:
    """Logits `(4,)` of one waveform of at most one window."""
    with torch.no_grad():
        logits: Tensor = model(FRONT_END(waveform[None]))[0]
    return logits


def test_files_are_classified_as_one_by_one(model: SepTr, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    files, expected = [], {}
    for index, samples in enumerate((SPAN, 300, 1, SPAN + 1, 4 * SPAN, SPAN // 2, 5 * SPAN // 2 + 3)):
        path = tmp_path / f"{index}.wav"
        waveform = write(path, samples, seed=index)
        starts = [0] if samples <= SPAN else window_starts(samples, SPAN, SPAN // 2)
        windows = torch.stack([logits_of(model, waveform[start : start + SPAN]) for start in starts])
        files.append(str(path))
        expected[str(path)] = (samples, len(starts), windows.mean(dim=0).softmax(dim=0))
    for batch in ("1", "3", "100"):
        assert main(["predict", *files, "--checkpoint", str(checkpoint), "--json", "--batch", batch]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        report = json.loads(out)
        assert report["skipped"] == []
        assert [entry["file"] for entry in report["files"]] == files
        for entry in report["files"]:
            samples, windows, probabilities = expected[entry["file"]]
            assert (entry["seconds"], entry["windows"]) == (samples / RATE, windows)
            best = probabilities.argsort(descending=True).tolist()
            assert [found["name"] for found in entry["classes"]] == [CLASSES[index] for index in best]
            found = [found["probability"] for found in entry["classes"]]
            assert found == pytest.approx(probabilities[best].tolist(), abs=1e-6)


def test_hop_sets_the_number_of_windows(checkpoint: Path, tmp_path: Path) -> None:
    write(tmp_path / "long.wav", 3 * SPAN)
    bundle = checkpoints.load(checkpoint)
    for hop, windows in ((None, 5), (SPAN / RATE, 3), (SPAN / RATE / 4, 9), (10.0, 2)):
        (found,) = prediction.classify(bundle, [tmp_path / "long.wav"], hop=hop)
        assert isinstance(found, prediction.Prediction)
        assert found.windows == windows
        assert float(found.probabilities.sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"^hop: expected at least 0\.000125 seconds"):
        list(prediction.classify(bundle, [], hop=1e-6))


def test_files_of_another_rate_are_resampled(model: SepTr, checkpoint: Path, tmp_path: Path) -> None:
    soxr = pytest.importorskip("soxr")
    waveform = write(tmp_path / "fast.wav", 4000, rate=22050)
    (found,) = prediction.classify(checkpoints.load(checkpoint), [tmp_path / "fast.wav"])
    own = torch.from_numpy(soxr.resample(waveform.numpy(), 22050, RATE))
    assert isinstance(found, prediction.Prediction)
    torch.testing.assert_close(found.probabilities.float(), logits_of(model, own).softmax(dim=0))


def test_text_names_the_file_and_its_top_classes(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "clip.wav", SPAN)
    assert main(["predict", str(tmp_path / "clip.wav"), "--checkpoint", str(checkpoint), "--top", "2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(tmp_path / "clip.wav")
    assert len(lines) == 2
    values = [float(line.split()[1].rstrip("%")) for line in lines]
    assert 100 > values[0] > values[1] > 0
    assert {line.split()[0] for line in lines} < set(CLASSES)


def test_broken_files_are_named_counted_and_skipped(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "good.wav", SPAN)
    write(tmp_path / "empty.wav", 0)
    (tmp_path / "broken.wav").write_bytes(b"no sound at all")
    (tmp_path / "folder.wav").mkdir()
    bad = ["empty.wav", "broken.wav", "folder.wav", "missing.wav"]
    files = [str(tmp_path / name) for name in (bad[0], bad[1], "good.wav", bad[2], bad[3])]
    assert main(["predict", *files, "--checkpoint", str(checkpoint), "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [entry["file"] for entry in report["files"]] == [str(tmp_path / "good.wav")]
    assert [Path(entry["file"]).name for entry in report["skipped"]] == bad
    assert "which is empty" in report["skipped"][0]["reason"]
    *named, count = err.splitlines()
    for name, line in zip(bad, named, strict=True):
        assert line.startswith(f"septr-fast predict: skipped {tmp_path / name}: path: expected")
    assert count == "septr-fast predict: skipped 4 of 5 files"


def test_names_that_are_no_text_are_escaped(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    name = str(tmp_path / "caf\udce9.wav")
    write(tmp_path / "cafe.wav", SPAN)
    (tmp_path / "cafe.wav").rename(name)
    for options in ([], ["--json"]):
        assert main(["predict", name, "--checkpoint", str(checkpoint), *options]) == 0
        assert ("caf\\udce9" if options else "caf\\xe9") in capsys.readouterr().out


def test_reasons_and_errors_are_lines_whatever_names_hold(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    name = tmp_path / "\x1b[31mred\n.wav"
    name.write_bytes(b"no sound")
    for command in ("predict", "explain"):
        assert main([command, str(name), "--checkpoint", str(checkpoint)]) == 1
        assert main([command, str(name), "--checkpoint", str(name)]) == 2
        told = capsys.readouterr().err
        assert all(letter.isprintable() for letter in told.replace("\n", ""))
        assert all(line.startswith(f"septr-fast {command}: ") for line in told.splitlines())
        assert "\\x1b[31mred\\n.wav" in told


def test_logits_that_are_not_finite_are_no_answer(model: SepTr, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    with torch.no_grad():
        model.fc.bias[1] = torch.nan
    checkpoints.save(checkpoint, model, CLASSES, FRONT_END.settings)
    write(tmp_path / "clip.wav", SPAN)
    assert main(["predict", str(tmp_path / "clip.wav"), "--checkpoint", str(checkpoint)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "expected finite logits, got NaN or infinity" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere"], "there is no nowhere"),
        (["--checkpoint", __file__], "expected a readable safetensors file, got .*test_predict.py"),
        (["--device", "abacus"], "device: expected one that can be used, got abacus"),
        (["--hop", "0.000001"], "hop: expected at least"),
    ],
    ids=["no-checkpoint", "broken-checkpoint", "device", "hop"],
)
def test_usage_errors_are_status_2(options: list[str], message: str, checkpoint: Path, capfd: Any) -> None:
    assert main(["predict", "clip.wav", "--checkpoint", str(checkpoint), *options]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("septr-fast predict: ")
    assert re.search(message, err), err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["clip.wav"],
        ["--checkpoint", "x"],
        ["clip.wav", "--checkpoint", "x", "--top", "0"],
        ["clip.wav", "--checkpoint", "x", "--batch", "many"],
        ["clip.wav", "--checkpoint", "x", "--hop", "-1"],
        ["clip.wav", "--checkpoint", "x", "--hop", "nan"],
        ["clip.wav", "--checkpoint", "x", "--hop", "long"],
    ],
    ids=" ".join,
)
def test_wrong_command_lines_exit_with_2(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *arguments])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["soundfile", "safetensors.torch"])
def test_missing_packages_are_status_2(
    package: str, checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["predict", "clip.wav", "--checkpoint", str(checkpoint)]) == 2
    assert "pip install 'septr_fast[" in capsys.readouterr().err
