"""Clips of the package: resampling, names of files that cannot be used, packages that are missing."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

import soundfile

from septr_fast.audio import clips


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    """A sine `(samples,)`, float32."""
    return torch.sin(2 * math.pi * hertz / rate * torch.arange(round(rate * seconds), dtype=torch.float64)).float()


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (22050, 16000), (16000, 11025)])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int, wanted: int) -> None:
    found, expected = clips.resample(tone(440, rate), rate, wanted), tone(440, wanted)
    assert found.dtype == torch.float32
    assert abs(len(found) - len(expected)) <= 1
    torch.testing.assert_close(found[500:4500], expected[500:4500], atol=1e-3, rtol=0)


def test_what_the_new_rate_cannot_hold_is_gone() -> None:
    assert float(clips.resample(tone(7000, 44100), 44100, 8000)[500:3500].abs().max()) < 1e-3


def test_equal_rates_leave_the_samples_alone() -> None:
    waveform = tone(440, 8000)
    assert clips.resample(waveform, 8000, 8000) is waveform


@pytest.mark.parametrize(
    ("rate", "wanted", "name"), [(0, 8000, "rate"), (8000, 0, "wanted"), (1, 16000, "rate")], ids=["0", "to-0", "1"]
)
def test_impossible_rates_raise(rate: int, wanted: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected at least"):
        clips.resample(tone(440, 8000), rate, wanted)


def test_loading_gives_the_wanted_rate(tmp_path: Path) -> None:
    stereo = torch.stack([tone(440, 22050), tone(880, 22050)], dim=1)
    soundfile.write(tmp_path / "clip.wav", stereo.numpy(), 22050, subtype="FLOAT")
    found = clips.load_clip(tmp_path / "clip.wav", 8000)
    expected = (tone(440, 8000) + tone(880, 8000)) / 2
    torch.testing.assert_close(found[500:3500], expected[500:3500], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [(1, 48000, "too short at 8000 Hz"), (100, 2, "can be resampled, .*: rate: expected at least 80 Hz")],
    ids=["nothing-left", "broken-rate"],
)
def test_what_cannot_be_resampled_is_named(samples: int, rate: int, message: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", torch.zeros(samples).numpy(), rate)
    with pytest.raises(ValueError, match=rf"^path: .*{message}") as caught:
        clips.load_clip(tmp_path / "clip.wav", 8000)
    assert "clip.wav" in str(caught.value)


FORMATS = {
    **{".nist": "NIST", ".sph": "NIST", ".voc": "VOC", ".htk": "HTK", ".avr": "AVR", ".ircam": "IRCAM", ".paf": "PAF"},
    **{".pvf": "PVF", ".8svx": "SVX", ".wve": "WVE", ".caf": "CAF", ".w64": "W64", ".rf64": "RF64"},
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_libsndfile_reads_is_found_and_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix.upper()}"
    subtype = "ALAW" if suffix == ".wve" else "PCM_16"
    soundfile.write(path, tone(440, 8000).numpy(), 8000, format=FORMATS[suffix], subtype=subtype)
    assert clips.find_clips(tmp_path) == [path]
    torch.testing.assert_close(clips.read_clip(path)[0], tone(440, 8000), atol=0.04, rtol=0)


def test_folders_of_other_kinds_of_audio_are_told(tmp_path: Path) -> None:
    """Where a folder is looked through, and where it is read as a file."""
    for number in range(7):
        (tmp_path / f"{number}.{'m4a' if number % 2 else 'WMA'}").touch()
    told = r"7 files of kinds that libsndfile does not read \(\.m4a, \.wma\): .*0\.WMA, .*4\.WMA and 2 more$"
    with pytest.raises(ValueError, match=f"^folder: expected audio files below .*, found none, but {told}"):
        clips.find_clips(tmp_path)
    with pytest.raises(ValueError, match=f"^path: expected an audio file, got the folder .* none .*, but {told}"):
        clips.read_clip(tmp_path)
    soundfile.write(tmp_path / "8.wav", torch.zeros(100).numpy(), 8000)
    with pytest.raises(ValueError, match=r"^path: expected an audio file, got the folder [^,]*$"):
        clips.read_clip(tmp_path)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "clip.wav", torch.zeros(100).numpy(), 8000)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ImportError, match=r"^resampling needs the package soxr: pip install 'septr_fast\[audio\]'"):
        clips.load_clip(tmp_path / "clip.wav", 16000)
    assert len(clips.load_clip(tmp_path / "clip.wav", 8000)) == 100
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"^reading audio files needs the package soundfile: pip install"):
        clips.load_clip(tmp_path / "clip.wav", 8000)


def test_optional_packages_are_imported_where_they_are_needed() -> None:
    names = ("soundfile", "soxr", "safetensors", "librosa")
    code = f"import sys, septr_fast, septr_fast.__main__; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(b"")
    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert list(clips.walk(tmp_path)) == [tmp_path / "open" / "1.wav"]
    assert f"left out {tmp_path / 'closed'}, which may not be read" in caplog.text
