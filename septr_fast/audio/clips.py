"""Audio files: found below a folder, read as mono samples, resampled.

Files are read by the package soundfile and resampled by soxr, the extra `audio`; both are imported when they
are first needed.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

_MOST_UPSAMPLING = 100
"""Largest factor by which a clip is resampled: a rate below is that of a broken header."""


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
        path: a WAV file, or another that libsndfile reads, with any number of channels, which are averaged. Of a
            file that was cut short come the samples that are there.

    Returns:
        The samples `(samples,)`, float32, full scale at 1, and the rate in hertz.

    Raises:
        ValueError: if the file cannot be read, holds no samples or holds NaN or infinity.
        ImportError: where soundfile or its library is missing.
    """
    soundfile = import_soundfile()
    try:
        with path.open("rb") as file:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(f"path: expected a readable WAV file, got {path}: {reason}") from error
    waveform = torch.from_numpy(samples).mean(dim=1)
    if len(waveform) == 0:
        raise ValueError(f"path: expected a WAV file with samples, got {path}, which is empty")
    if not bool(waveform.isfinite().all()):
        raise ValueError(f"path: expected finite samples, got NaN or infinity in {path}")
    return waveform, int(rate)


def resample(waveform: Tensor, rate: int, wanted: int) -> Tensor:
    """`waveform` at another rate, band-limited, by soxr in its high quality.

    Args:
        waveform: `(samples,)` or `(samples, channels)`, float32 or float64, on the CPU, without gradients.
        rate: its rate in hertz.
        wanted: the rate of the result in hertz.

    Returns:
        About `samples * wanted / rate` samples in the dtype of `waveform`; `waveform` itself where the rates are
        equal.

    Raises:
        ValueError: for a rate below 1, or one below a hundredth of `wanted`.
        ImportError: where soxr is missing.
    """
    for name, value in (("rate", rate), ("wanted", wanted)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1 Hz, got {value}")
    if rate == wanted:
        return waveform
    if rate * _MOST_UPSAMPLING < wanted:
        raise ValueError(f"rate: expected at least {wanted / _MOST_UPSAMPLING:g} Hz for {wanted} Hz, got {rate}")
    try:
        import soxr
    except ImportError as error:
        raise ImportError(_missing("resampling", "soxr")) from error
    return torch.from_numpy(soxr.resample(waveform.numpy(), rate, wanted))


def load_clip(path: Path, rate: int) -> Tensor:
    """One WAV file as mono samples `(samples,)`, float32, at `rate` hertz.

    Raises:
        ValueError: as `read_clip` and `resample` do, naming the file.
        ImportError: where soundfile is missing, or soxr for a file of another rate.
    """
    waveform, own = read_clip(path)
    try:
        waveform = resample(waveform, own, rate)
    except ValueError as error:
        raise ValueError(f"path: expected a WAV file that can be resampled, got {path}: {error}") from error
    if len(waveform) == 0:
        raise ValueError(f"path: expected a WAV file with samples, got {path}, too short at {rate} Hz")
    return waveform


def import_soundfile() -> ModuleType:
    """The package soundfile; `ImportError` says how to get it where it or its library is missing."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ImportError(_missing("reading audio files", "soundfile")) from error
    module: ModuleType = soundfile
    return module


def _missing(what: str, package: str) -> str:
    return f"{what} needs the package {package}: pip install 'septr_fast[audio]'"
