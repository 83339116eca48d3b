"""From a folder of WAV files to standardized log-mel spectrograms with labels.

The label of a clip is the name of the folder that holds it, the layout of Google Speech Commands and of
`benchmarks.speech`. Nothing is resampled: the mel filters follow the rate of each clip.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

_FLOOR = 1e-10
_WINDOW_SECONDS = 0.025

# Slaney's mel scale: linear below 1000 Hz, 27 steps per factor of 6.4 above.
_LINEAR_HERTZ = 200.0 / 3.0
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ / _LINEAR_HERTZ
_LOG_STEP = math.log(6.4) / 27.0

_logger = logging.getLogger(__name__)


@dataclass
class Clips:
    """Labelled spectrograms.

    Attributes:
        spectrograms: `(clips, 1, mels, frames)`, float32, each with zero mean and unit variance.
        labels: `(clips,)`, int64, indices into `classes`.
        classes: class names, sorted.
        names: path of each clip below the folder, with forward slashes.
    """

    spectrograms: Tensor
    labels: Tensor
    classes: list[str]
    names: list[str]


def find_clips(folder: Path) -> list[Path]:
    """All WAV files below `folder`, sorted, but for folders named with a leading underscore.

    Those hold no class: Speech Commands keeps its background noise in one.

    Args:
        folder: searched with all its subfolders for files ending in ".wav", in any case.

    Raises:
        ValueError: if `folder` is no folder or holds no WAV file.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder of WAV files, got {folder}, which is not a folder")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() == ".wav" and path.is_file()]
    paths = [path for path in paths if not path.parent.name.startswith("_")]
    if not paths:
        raise ValueError(f"folder: expected WAV files below {folder}, found none")
    return sorted(paths, key=Path.as_posix)


def read_clip(path: Path) -> tuple[Tensor, int]:
    """One WAV file as mono samples.

    Args:
        path: a WAV file with any number of channels, which are averaged.

    Returns:
        The samples `(samples,)`, float32, full scale at 1, and the rate in hertz.

    Raises:
        ValueError: if the file cannot be read, holds no samples or holds NaN or infinity.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"path: expected a readable WAV file, got {path}: {error}") from error
    waveform = torch.from_numpy(samples).mean(dim=1)
    if len(waveform) == 0:
        raise ValueError(f"path: expected a WAV file with samples, got {path}, which is empty")
    if not bool(waveform.isfinite().all()):
        raise ValueError(f"path: expected finite samples, got NaN or infinity in {path}")
    return waveform, int(rate)


def _hertz_to_mel(hertz: float) -> float:
    """`hertz` on Slaney's mel scale."""
    if hertz < _BREAK_HERTZ:
        return hertz / _LINEAR_HERTZ
    return _BREAK_MEL + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def _mel_to_hertz(mel: Tensor) -> Tensor:
    """The inverse of `_hertz_to_mel`, elementwise."""
    above = _BREAK_HERTZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return torch.where(mel < _BREAK_MEL, mel * _LINEAR_HERTZ, above)


def _mel_edges(mels: int, rate: int) -> Tensor:
    """Corners of `mels` triangles, in hertz: `(mels + 2,)`, float64, evenly spaced in mel up to `rate / 2`."""
    return _mel_to_hertz(torch.linspace(0.0, _hertz_to_mel(rate / 2), mels + 2, dtype=torch.float64))


def mel_filters(mels: int, fft_size: int, rate: int) -> Tensor:
    """Triangular mel filters of equal area on Slaney's scale, from 0 Hz to half the rate.

    Args:
        mels: number of filters.
        fft_size: length of the Fourier transform, in samples.
        rate: sampling rate in hertz.

    Returns:
        `(mels, fft_size // 2 + 1)`, float32; equal to `librosa.filters.mel(sr=rate, n_fft=fft_size, n_mels=mels)`.

    Raises:
        ValueError: if an argument is below 1.
    """
    for name, value in (("mels", mels), ("fft_size", fft_size), ("rate", rate)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    edges = _mel_edges(mels, rate)
    bins = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * (rate / fft_size)
    offsets = bins[None, :] - edges[:, None]
    widths = edges.diff()[:, None]
    triangles = torch.minimum(offsets[:-2] / widths[:-1], -offsets[2:] / widths[1:]).clamp(min=0.0)
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


def _check_layout(size: tuple[int, int], seconds: float) -> None:
    """Raise `ValueError` unless `size` and `seconds` describe a spectrogram."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (mels, frames), both at least 1, got {size}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds: expected a positive number, got {seconds}")


def _transform_size(mels: int, rate: int, hop: int, samples: int) -> int:
    """Length of the Fourier transform, a power of two, in samples.

    It spans 25 ms and two hops at least, and its bins are closer than the narrowest mel filter is wide, so
    that every filter catches a bin; reflect padding bounds it to twice the clip.
    """
    edges = _mel_edges(mels, rate)
    narrowest = float((edges[2:] - edges[:-2]).min())
    wanted = max(_WINDOW_SECONDS * rate, 2 * hop, rate / narrowest + 1)
    largest = 1 << ((2 * samples - 1).bit_length() - 1)
    return min(1 << math.ceil(math.log2(wanted)), largest)


def _fit(waveform: Tensor, samples: int) -> Tensor:
    """`waveform` cut at the end, or padded there with zeros, to `(samples,)`."""
    missing = max(samples - len(waveform), 0)
    return torch.nn.functional.pad(waveform[:samples], (0, missing))


def _standardize(values: Tensor) -> Tensor:
    """`values` with zero mean and unit variance; all zeros if they are constant."""
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if float(deviation) > 1e-4 else torch.zeros_like(values)


def log_mel(waveform: Tensor, rate: int, size: tuple[int, int] = (128, 128), seconds: float = 1.0) -> Tensor:
    """Log-mel power spectrogram of the first `seconds` of a clip, standardized.

    Args:
        waveform: `(samples,)`, floating point; cut to `seconds` or padded with zeros at the end.
        rate: sampling rate in hertz.
        size: mels and frames of the result; the hop follows from the frames.
        seconds: span of the spectrogram.

    Returns:
        `(1, mels, frames)`, float32, zero mean and unit variance; all zeros for a silent clip.

    Raises:
        ValueError: for a waveform that is not a vector of floating-point samples, for a size, span or rate
            that is not positive, and for more frames than there are samples in the span.
    """
    _check_layout(size, seconds)
    if waveform.dim() != 1 or len(waveform) == 0 or not waveform.is_floating_point():
        raise ValueError(
            f"waveform: expected floating-point samples (samples,), got {waveform.dtype} {tuple(waveform.shape)}"
        )
    if rate < 1:
        raise ValueError(f"rate: expected at least 1 Hz, got {rate}")
    mels, frames = size
    samples = round(rate * seconds)
    if samples < max(frames, 2):
        raise ValueError(f"size: expected at most one frame per sample, got {frames} frames for {samples} samples")
    hop = samples // max(frames - 1, 1)
    fft_size = _transform_size(mels, rate, hop, samples)
    spectrum = torch.stft(
        _fit(waveform.float(), samples),
        n_fft=fft_size,
        hop_length=hop,
        window=torch.hann_window(fft_size, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum[:, :frames].abs().square()
    mel_power = mel_filters(mels, fft_size, rate).to(power.device) @ power
    return _standardize(mel_power.clamp(min=_FLOOR).log())[None]


def _spread(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of `paths`, evenly spaced; all of them without a limit."""
    if limit is None or limit >= len(paths):
        return list(paths)
    if limit < 1:
        raise ValueError(f"limit: expected at least 1 or None, got {limit}")
    return [paths[index * len(paths) // limit] for index in range(limit)]


def load_clips(
    folder: Path, size: tuple[int, int] = (128, 128), limit: int | None = None, seconds: float = 1.0
) -> Clips:
    """Spectrograms and labels of the WAV files below `folder`.

    A file that cannot be used is skipped with a warning that names it, so with a limit there may be fewer
    clips. The classes are those of all files found, so that labels depend neither on the limit nor on
    broken files.

    Args:
        folder: holds one folder of WAV files per class, at any depth.
        size: mels and frames of the spectrograms.
        limit: most clips to read, spread evenly over the sorted files; None reads all.
        seconds: span of every spectrogram.

    Raises:
        ValueError: if `folder` has no WAV file that can be used, or for a wrong size, limit or span.
    """
    _check_layout(size, seconds)
    found = find_clips(folder)
    classes = sorted({path.parent.name for path in found})
    chosen = _spread(found, limit)
    spectrograms: list[Tensor] = []
    kept: list[Path] = []
    for path in tqdm(chosen, desc="reading clips", unit="clip"):
        try:
            waveform, rate = read_clip(path)
            spectrograms.append(log_mel(waveform, rate, size, seconds))
        except ValueError as error:
            _logger.warning("skipped %s: %s", path, error)
            continue
        kept.append(path)
    if len(kept) < len(chosen):
        _logger.warning("skipped %d of %d clips below %s", len(chosen) - len(kept), len(chosen), folder)
    if not kept:
        raise ValueError(f"folder: expected readable WAV files below {folder}, all {len(chosen)} tried are broken")
    return Clips(
        spectrograms=torch.stack(spectrograms),
        labels=torch.tensor([classes.index(path.parent.name) for path in kept], dtype=torch.int64),
        classes=classes,
        names=[path.relative_to(folder).as_posix() for path in kept],
    )
