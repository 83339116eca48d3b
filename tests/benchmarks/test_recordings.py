"""WAV files to spectrograms: frequencies, shapes, labels and files that cannot be read."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

import soundfile

from benchmarks.speech import recordings

RATE = 16000
SIZES = [(64, 64), (128, 128), (161, 99), (40, 1), (1, 7)]


def tone(hertz: float, samples: int = RATE, rate: int = RATE) -> Tensor:
    """A sine `(samples,)` at half of full scale."""
    return 0.5 * torch.sin(2 * math.pi * hertz / rate * torch.arange(samples, dtype=torch.float64)).float()


def write(path: Path, waveform: Tensor, rate: int = RATE) -> Path:
    """Write `(samples,)` or `(samples, channels)` as 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform.numpy(), rate, subtype="PCM_16", format="WAV")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with four clips each, of different tones."""
    for index, label in enumerate(("yes", "no", "up")):
        for take in range(4):
            write(tmp_path / label / f"{take}.wav", tone(300 + 400 * index + 50 * take, RATE // 2))
    return tmp_path


def test_clips_are_found_below_the_folder_in_any_case_and_sorted(tmp_path: Path) -> None:
    wanted = [write(tmp_path / name, tone(440)) for name in ("a/2.wav", "a/10.WAV", "b/c/1.wav")]
    (tmp_path / "a" / "notes.txt").write_text("no clip")
    (tmp_path / "folder.wav").mkdir()
    assert recordings.find_clips(tmp_path) == sorted(wanted)


def test_empty_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^folder: expected audio files below .*, found none"):
        recordings.find_clips(tmp_path)


def test_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^folder: .*nowhere, which is not a folder"):
        recordings.find_clips(tmp_path / "nowhere")


def test_reading_gives_float_samples_and_the_rate(tmp_path: Path) -> None:
    waveform, rate = recordings.read_clip(write(tmp_path / "clip.wav", tone(440, 500, 22050), 22050))
    assert (waveform.dtype, tuple(waveform.shape), rate) == (torch.float32, (500,), 22050)
    torch.testing.assert_close(waveform, tone(440, 500, 22050), atol=1 / 32768, rtol=0)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(440, 500), tone(880, 500)
    waveform, _ = recordings.read_clip(write(tmp_path / "clip.wav", torch.stack([left, right], dim=1)))
    torch.testing.assert_close(waveform, (left + right) / 2, atol=1 / 32768, rtol=0)


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x24\x00\x00\x00WAVE"], ids=["0", "text", "header"])
def test_broken_file_raises_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.wav"):
        recordings.read_clip(path)


def test_file_without_samples_raises_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hollow\.wav, which is empty"):
        recordings.read_clip(write(tmp_path / "hollow.wav", torch.zeros(0)))


def test_file_with_nan_raises_with_its_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], dtype=np.float32), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"NaN or infinity in .*nan\.wav"):
        recordings.read_clip(tmp_path / "nan.wav")


@pytest.mark.parametrize(
    ("mels", "fft_size", "rate"), [(128, 512, 16000), (64, 1024, 22050), (161, 2048, 48000), (20, 401, 1500)]
)
def test_filters_equal_those_of_librosa(mels: int, fft_size: int, rate: int) -> None:
    librosa = pytest.importorskip("librosa")
    expected = torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=fft_size, n_mels=mels))
    torch.testing.assert_close(recordings.mel_filters(mels, fft_size, rate), expected, atol=1e-5, rtol=0)


def test_filters_have_equal_area() -> None:
    filters = recordings.mel_filters(40, 8192, RATE)
    torch.testing.assert_close(filters.sum(dim=1) * RATE / 8192, torch.ones(40), atol=2e-3, rtol=0)


@pytest.mark.parametrize("arguments", [(0, 512, RATE), (40, 0, RATE), (40, 512, 0)], ids=["mels", "fft_size", "rate"])
def test_filters_reject_sizes_below_one(arguments: tuple[int, int, int], request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match=f"^{request.node.callspec.id}: expected at least 1, got 0"):
        recordings.mel_filters(*arguments)


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_spectrogram_has_the_size_asked_for(size: tuple[int, int], rate: int) -> None:
    spectrogram = recordings.log_mel(torch.randn(rate // 2), rate, size)
    assert (spectrogram.dtype, tuple(spectrogram.shape)) == (torch.float32, (1, *size))


def test_frames_are_exact_for_every_short_span() -> None:
    for samples in range(2, 60):
        for frames in range(1, samples + 1):
            assert recordings.log_mel(torch.randn(20), samples, (3, frames)).shape == (1, 3, frames)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (161, 99)], ids="{0[0]}x{0[1]}".format)
def test_no_mel_band_is_dead(size: tuple[int, int], rate: int) -> None:
    noise = torch.randn(rate, generator=torch.Generator().manual_seed(0))
    deviations = recordings.log_mel(noise, rate, size)[0].std(dim=1)
    assert float(deviations.min()) > 0


@pytest.mark.parametrize("hertz", [250, 1000, 3000, 6500])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (161, 99)], ids="{0[0]}x{0[1]}".format)
def test_pure_tone_lands_in_the_right_mel_band(hertz: int, size: tuple[int, int]) -> None:
    edges = recordings._mel_edges(size[0], RATE)
    nearest = int((edges[1:-1] - hertz).abs().argmin())
    loudest = recordings.log_mel(tone(hertz), RATE, size)[0].mean(dim=1).argmax()
    assert abs(int(loudest) - nearest) <= 1


def test_mel_scale_has_an_inverse() -> None:
    hertz = [0.0, 440.0, 1000.0, 6400.0]
    mels = [recordings._hertz_to_mel(value) for value in hertz]
    assert mels[2:] == pytest.approx([15.0, 42.0])
    torch.testing.assert_close(recordings._mel_to_hertz(torch.tensor(mels, dtype=torch.float64)).tolist(), hertz)


def test_sound_is_early_and_padding_late() -> None:
    spectrogram = recordings.log_mel(tone(1000, RATE // 4), RATE, (64, 64))[0]
    loudness = spectrogram.mean(dim=0)
    assert float(loudness[:16].min()) > float(loudness[20:].max())
    assert float(spectrogram[:, 20:].max()) == float(spectrogram[:, 20:].min()) == float(spectrogram.min())


def test_padding_with_zeros_changes_nothing() -> None:
    short = tone(1000, RATE // 4)
    padded = torch.cat([short, torch.zeros(RATE)])
    torch.testing.assert_close(recordings.log_mel(short, RATE), recordings.log_mel(padded, RATE))


def test_what_follows_the_span_is_cut() -> None:
    sound = tone(1000)
    longer = torch.cat([sound, tone(3000, 5000)])
    torch.testing.assert_close(recordings.log_mel(longer, RATE), recordings.log_mel(sound, RATE))
    assert not torch.allclose(
        recordings.log_mel(longer, RATE, seconds=1.25), recordings.log_mel(sound, RATE, seconds=1.25)
    )


def test_spectrogram_is_standardized_whatever_the_volume() -> None:
    spectrogram = recordings.log_mel(torch.randn(RATE, generator=torch.Generator().manual_seed(0)) * 0.01, RATE)
    assert float(spectrogram.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(spectrogram.var(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_silence_gives_zeros() -> None:
    assert torch.equal(recordings.log_mel(torch.zeros(RATE), RATE), torch.zeros(1, 128, 128))


@pytest.mark.parametrize(
    ("waveform", "rate", "size", "seconds", "name"),
    [
        (torch.zeros(2, 50), RATE, (8, 8), 1.0, "waveform"),
        (torch.zeros(0), RATE, (8, 8), 1.0, "waveform"),
        (torch.zeros(50, dtype=torch.int16), RATE, (8, 8), 1.0, "waveform"),
        (torch.zeros(50), 0, (8, 8), 1.0, "rate"),
        (torch.zeros(50), RATE, (0, 8), 1.0, "size"),
        (torch.zeros(50), 100, (8, 101), 1.0, "size"),
        (torch.zeros(50), RATE, (8, 8), 0.0, "seconds"),
        (torch.zeros(50), RATE, (8, 8), math.nan, "seconds"),
    ],
    ids=["stereo", "empty", "integers", "rate", "no-mels", "too-many-frames", "no-time", "nan-time"],
)
def test_wrong_arguments_raise_with_their_name(
    waveform: Tensor, rate: int, size: tuple[int, int], seconds: float, name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        recordings.log_mel(waveform, rate, size, seconds)


def test_labels_are_the_parent_folders(folder: Path) -> None:
    clips = recordings.load_clips(folder, (16, 20))
    assert clips.classes == ["no", "up", "yes"]
    assert (clips.labels.dtype, clips.spectrograms.dtype) == (torch.int64, torch.float32)
    assert tuple(clips.spectrograms.shape) == (12, 1, 16, 20)
    assert clips.names == [f"{label}/{take}.wav" for label in clips.classes for take in range(4)]
    assert [clips.classes[label] for label in clips.labels] == [name.split("/")[0] for name in clips.names]


def test_spectrograms_belong_to_their_names(folder: Path) -> None:
    clips = recordings.load_clips(folder, (16, 20), seconds=0.5)
    for spectrogram, name in zip(clips.spectrograms, clips.names, strict=True):
        torch.testing.assert_close(spectrogram, recordings.log_mel(*recordings.read_clip(folder / name), (16, 20), 0.5))


def test_one_label_for_a_word_in_several_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for word in ("yes", "no"):
            write(tmp_path / split / word / "voice.wav", tone(440))
    clips = recordings.load_clips(tmp_path, (8, 8))
    assert (clips.classes, clips.labels.tolist()) == (["no", "yes"], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("limit", "labels"), [(3, [0, 1, 2]), (6, [0, 0, 1, 1, 2, 2]), (100, [0] * 4 + [1] * 4 + [2] * 4)]
)
def test_limit_spreads_over_the_classes(limit: int, labels: list[int], folder: Path) -> None:
    assert recordings.load_clips(folder, (8, 8), limit).labels.tolist() == labels


def test_limit_of_one_keeps_all_classes_in_the_numbering(folder: Path) -> None:
    clips = recordings.load_clips(folder, (8, 8), 1)
    assert (len(clips.labels), clips.classes) == (1, ["no", "up", "yes"])


def test_broken_file_is_skipped_named_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "no" / "broken.wav").write_bytes(b"no sound at all")
    with caplog.at_level(logging.WARNING, logger="benchmarks.speech.recordings"):
        clips = recordings.load_clips(folder, (8, 8))
    assert len(clips.labels) == len(clips.spectrograms) == len(clips.names) == 12
    assert "no/broken.wav" not in clips.names
    first, total = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"skipped {folder / 'no' / 'broken.wav'}")
    assert total == f"skipped 1 of 13 clips below {folder}"


def test_nothing_but_broken_files_raises(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound at all")
    with pytest.raises(ValueError, match=r"^folder: expected readable WAV files"):
        recordings.load_clips(tmp_path, (8, 8))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"size": (0, 8)}, "size"), ({"limit": 0}, "limit"), ({"limit": -1}, "limit"), ({"seconds": -1.0}, "seconds")],
    ids=["size", "limit-0", "limit-negative", "seconds"],
)
def test_wrong_settings_raise_before_any_file_is_read(
    arguments: dict[str, object], name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        recordings.load_clips(folder, **arguments)  # type: ignore[arg-type]
    assert not caplog.records


def test_folders_with_an_underscore_hold_no_class(tmp_path: Path) -> None:
    for folder in ("yes", "_background_noise_"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "clip.wav", torch.rand(8000).numpy(), 16000)
    assert recordings.load_clips(tmp_path, (32, 32)).classes == ["yes"]
