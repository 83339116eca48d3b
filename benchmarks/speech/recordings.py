"""From a folder of WAV files to standardized log-mel spectrograms with labels.

The label of a clip is the name of the folder that holds it, the layout of Google Speech Commands and of
`benchmarks.speech.spoken_words`. Nothing is resampled: the mel filters follow the rate of each clip.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from septr_fast.audio.clips import find_clips, read_clip
from septr_fast.audio.mel import hertz_to_mel as _hertz_to_mel  # noqa: F401
from septr_fast.audio.mel import mel_edges as _mel_edges
from septr_fast.audio.mel import mel_filters
from septr_fast.audio.mel import mel_to_hertz as _mel_to_hertz  # noqa: F401
from septr_fast.audio.standardization import standardize_clips
from septr_fast.progress import track

_FLOOR = 1e-10
_WINDOW_SECONDS = 0.025

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
    return standardize_clips(mel_power.clamp(min=_FLOOR).log()[None, None])[0]


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
    for path in track(chosen, "clips", "reading"):
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
