"""The command `explain`: the numbers behind the figure, the figure, what is printed, and errors."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")
pytest.importorskip("matplotlib")

import matplotlib.image
import soundfile

from septr_fast import ComplexSpectrogram, LogMel, SepTr
from septr_fast.__main__ import main
from septr_fast.adopt import checkpoints
from septr_fast.audio.spectrogram import Spectrogram
from septr_fast.commands import explain as explain_command
from septr_fast.inference import explain_figure
from septr_fast.inference.explain import RANGE, Explanation, bin_frequencies, explain

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 8000
CLASSES = ["yes", "no", "$go$"]
TINY: dict[str, Any] = {"num_classes": 3, "depth": 2, "heads": 2, "dim_head": 8, "dim": 16, "mlp_dim": 16}
MEL = LogMel(RATE, 12, fft_size=256, hop=80, frames=21, standardize=True)
SPAN = 21 * 80


def bundle(front_end: Spectrogram, **options: Any) -> checkpoints.Bundle:
    channels, *size = front_end.size
    model = SepTr(channels, size, **{**TINY, **options}).eval()
    return checkpoints.Bundle(model, front_end, tuple(CLASSES))


def tone(hertz: float, samples: int = SPAN) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz / RATE * torch.arange(samples, dtype=torch.float64)).float()


FRONT_ENDS: dict[str, tuple[Spectrogram, dict[str, Any]]] = {
    "mel": (MEL, {}),
    "mel, time first": (LogMel(RATE, 12, fft_size=256, hop=80, frames=21, time_first=True), {"first_axis": "width"}),
    "pooled": (MEL, {"down_sample_input": (5, 2)}),
    "complex, time first, pooled": (
        ComplexSpectrogram(RATE, fft_size=64, hop=32, frames=20, center=False, time_first=True, mean=0.1, deviation=2),
        {"down_sample_input": (2, 5)},
    ),
}


@pytest.mark.parametrize(("front_end", "options"), FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_the_numbers_are_those_of_the_last_block(front_end: Spectrogram, options: dict[str, Any]) -> None:
    whole = bundle(front_end, **options)
    waveform = torch.randn(front_end.span)
    found = explain(whole, waveform)
    x = front_end(waveform[None])
    with torch.no_grad():
        assert relative_error(found.probabilities, whole.model(x).softmax(dim=-1)[0]) < 1e-6
    height, width = (along[0, :, :, 0].mean(dim=1) for along in whole.model.attention_maps(x)[-1])
    pool = options.get("down_sample_input", (1, 1))
    assert found.pooling == (pool[::-1] if front_end.time_first else pool)
    over_frequency, over_time = (width, height) if front_end.time_first else (height, width)
    assert torch.equal(found.over_frequency, over_frequency[:, 1:].T)
    assert torch.equal(found.over_time, over_time[:, 1:])
    bands, intervals = front_end.bins // found.pooling[0], front_end.frames // found.pooling[1]
    assert found.over_frequency.shape == found.over_time.shape == (bands, intervals)
    assert found.frequency_profile.shape == (bands,)
    assert found.time_profile.shape == (intervals,)
    rest = 1 - over_frequency[:, 0].mean()
    assert found.frequency_profile.sum().item() == pytest.approx(rest.item(), abs=1e-6)
    assert found.decibels.shape == (front_end.bins, front_end.frames)
    assert found.frame_seconds == front_end.hop / RATE
    assert found.first_seconds == (0 if front_end.center else 32 / RATE)


@pytest.mark.parametrize(
    "front_end",
    [
        MEL,
        LogMel(RATE, 12, fft_size=256, hop=80, frames=21, log="decibel", top_db=70.0, mean=1.0, deviation=3.0),
        LogMel(RATE, 12, fft_size=256, hop=80, frames=21, log=None, power=1.0),
        LogMel(RATE, 12, fft_size=256, hop=80, frames=21, time_first=True),
        ComplexSpectrogram(RATE, fft_size=256, hop=80, frames=21, magnitude=False),
    ],
    ids=["natural", "decibel", "amplitude", "time first", "complex"],
)
def test_a_tone_is_where_its_frequency_is(front_end: Spectrogram) -> None:
    """Twice the amplitude is 6 decibels more, in every front-end; what is softer by more than the range is cut."""
    whole = bundle(front_end)
    waveform = torch.cat([tone(1000.0, SPAN // 2), 0.5 * tone(1000.0, SPAN // 2)])
    found = explain(whole, waveform)
    hertz = bin_frequencies(front_end)
    loud, soft = found.decibels[:, 5], found.decibels[:, 15]
    nearest = (hertz - 1000.0).abs().argmin()
    assert loud.argmax() == soft.argmax() == nearest
    assert (loud - soft)[nearest].item() == pytest.approx(20 * math.log10(2), abs=0.01)
    assert found.decibels.max() == 0
    assert found.decibels.min() >= -RANGE
    assert torch.equal(found.hertz, hertz)


def test_bins_have_the_frequencies_of_their_filters() -> None:
    peaks = MEL.filters.argmax(dim=1) * RATE / 256
    assert ((bin_frequencies(MEL) - peaks).abs() <= RATE / 256).all()
    linear = bin_frequencies(ComplexSpectrogram(RATE, fft_size=64, frames=4))
    assert (linear[0], linear[-1], len(linear)) == (0, RATE / 2, 33)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, bundle(MEL, down_sample_input=(5, 2)).model, CLASSES, MEL.settings)
    return path


def write(path: Path, waveform: Tensor) -> str:
    soundfile.write(path, waveform.numpy(), RATE, subtype="FLOAT")
    return str(path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Explanation, str, str]]:
    """What is drawn, remembered in place of the drawing."""
    calls: list[tuple[Explanation, str, str]] = []
    monkeypatch.setattr(
        explain_command, "draw", lambda explanation, title, note, _: calls.append((explanation, title, note))
    )
    return calls


def test_the_command_draws_and_prints_what_predict_prints(
    checkpoint: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write(tmp_path / "a clip.wav", tone(700.0))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", clip, "--checkpoint", str(checkpoint), "--top", "2"]) == 0
    predicted = capsys.readouterr().out
    assert main(["explain", clip, "--checkpoint", str(checkpoint), "--top", "2"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{predicted}a clip-attention.png\n", "")
    pixels = matplotlib.image.imread(tmp_path / "a clip-attention.png")
    assert min(pixels.shape[:2]) > 800
    assert len({tuple(pixel) for pixel in pixels.reshape(-1, pixels.shape[2])[::7].tolist()}) > 50


@pytest.mark.parametrize(
    "waveform", [torch.zeros(SPAN), tone(300.0, 40), tone(300.0, 3 * SPAN)], ids=["silence", "short", "long"]
)
def test_every_clip_can_be_drawn(waveform: Tensor, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    clip, out = write(tmp_path / "clip.wav", waveform), tmp_path / "out.PNG"
    assert main(["explain", clip, "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"{out}\n")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_title_names_class_and_probability(
    checkpoint: Path, tmp_path: Path, drawn: list[tuple[Explanation, str, str]]
) -> None:
    assert main(["explain", write(tmp_path / "clip.wav", tone(700.0)), "--checkpoint", str(checkpoint)]) == 0
    (explanation, title, note) = drawn[0]
    best = int(explanation.probabilities.argmax())
    assert title == f"clip.wav: {CLASSES[best]}, {explanation.probabilities[best]:.1%}"
    assert note == ""


@pytest.mark.parametrize(
    ("start", "begin"), [("0", 0), ("0.1", 800), ("0.3", 1360), ("0.37", 1360)], ids=["first", "inside", "end", "last"]
)
def test_one_window_of_a_long_clip_is_drawn_and_said(
    start: str, begin: int, checkpoint: Path, tmp_path: Path, drawn: list[tuple[Explanation, str, str]]
) -> None:
    waveform = torch.cat([tone(400.0, SPAN), tone(2000.0, SPAN)])[: SPAN + 1360]
    clip = write(tmp_path / "clip.wav", waveform)
    assert main(["explain", clip, "--checkpoint", str(checkpoint), "--start", start]) == 0
    explanation, _, note = drawn[0]
    wanted = explain(checkpoints.load(checkpoint), waveform[begin : begin + SPAN])
    assert explanation.first_seconds == begin / RATE
    assert torch.equal(explanation.over_time, wanted.over_time)
    assert torch.equal(explanation.decibels, wanted.decibels)
    assert note.startswith("mean of 3 windows over 0.38 seconds; drawn: ")
    assert f"drawn: {begin / RATE:.2f} to {(begin + SPAN) / RATE:.2f} seconds, alone " in note


def test_panels_lie_over_seconds_and_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of 5 bins and 2 frames over 12 bins and 21 frames: what pooling leaves over stays empty."""
    figures: list[Any] = []
    monkeypatch.setattr(explain_figure, "save", lambda figure, _: figures.append(figure))
    found = explain(bundle(MEL, down_sample_input=(5, 2)), tone(700.0))
    explain_figure.draw(found, "title with $dollars", "a note", tmp_path / "never.png")
    sound, beside, under, *_, by_frequency, by_time = (axes for axes in figures[0].axes if axes.get_title(loc="left"))
    assert figures[0].get_suptitle() == "title with $dollars"
    end = (21 - 0.5) * 0.01
    for axes, values, extent in (
        (sound, found.decibels, (-0.005, end, 0, 12)),
        (by_frequency, 100 * found.over_frequency, (-0.005, end - 0.01, 0, 10)),
        (by_time, 100 * found.over_time, (-0.005, end - 0.01, 0, 10)),
    ):
        (image,) = axes.images
        assert image.get_extent() == pytest.approx(extent)
        assert image.origin == "lower"
        torch.testing.assert_close(torch.from_numpy(image.get_array().data), values)
        assert (*axes.get_xlim(), *axes.get_ylim()) == pytest.approx((-0.005, end, 0, 12))
    ((frequency,), (time,)) = beside.patches, under.patches
    assert frequency.get_data().values == pytest.approx((100 * found.frequency_profile).numpy())
    assert list(frequency.get_data().edges) == [0, 5, 10]
    assert time.get_data().values == pytest.approx((100 * found.time_profile).numpy())
    assert time.get_data().edges == pytest.approx([-0.005 + 0.02 * token for token in range(11)])
    hertz = dict(zip([label.get_text() for label in sound.get_yticklabels()], sound.get_yticks(), strict=True))
    assert hertz["1000"] == pytest.approx(0.5 + (found.hertz < 1000).sum().item(), abs=1)
    assert list(hertz.values()) == sorted(hertz.values(), reverse=True)


def test_a_broken_clip_is_named_with_status_1(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound at all")
    write(tmp_path / "empty.wav", torch.zeros(0))
    for name in ("broken.wav", "empty.wav", "missing.wav"):
        clip, out = tmp_path / name, tmp_path / "out.png"
        assert main(["explain", str(clip), "--checkpoint", str(checkpoint), "--out", str(out)]) == 1
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.startswith(f"septr-fast explain: skipped {clip}: path: expected")
        assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere"], "there is no nowhere"),
        (["--device", "abacus"], "device: expected one that can be used, got abacus"),
        (["--out", "nowhere/x.png"], "out: expected a file ending in .png in an existing folder, got nowhere/x.png"),
        (["--out", "figure.jpg"], "out: expected a file ending in .png in an existing folder, got figure.jpg"),
        (["--start", "0.21"], "start: expected less than the clip's 0.21 seconds, got 0.21"),
    ],
    ids=["no checkpoint", "device", "folder", "format", "start"],
)
def test_usage_errors_are_status_2(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip = write(tmp_path / "clip.wav", tone(700.0))
    assert main(["explain", clip, "--checkpoint", str(checkpoint), *options]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("septr-fast explain: ")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.wav"], ["a.wav", "--checkpoint", "x", "--start", "-1"], ["a.wav", "--checkpoint", "x", "--start", "late"]],
    ids=" ".join,
)
def test_wrong_command_lines_exit_with_2(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explain", *arguments])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_logits_that_are_not_finite_are_no_answer() -> None:
    whole = bundle(MEL)
    with torch.no_grad():
        whole.model.fc.bias[0] = torch.nan
    with pytest.raises(ValueError, match="model: expected finite logits"):
        explain(whole, tone(700.0))


def test_without_matplotlib_nothing_is_computed(checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_command.figures, "available", lambda: False)
    assert main(["explain", "clip.wav", "--checkpoint", str(checkpoint)]) == 2
    assert "pip install 'septr_fast[report]'" in capsys.readouterr().err


def test_the_command_line_imports_no_matplotlib() -> None:
    import subprocess

    code = "import sys, septr_fast.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
