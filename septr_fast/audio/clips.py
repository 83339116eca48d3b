"""Audio files: found below a folder, read as mono samples, resampled.

Files are read by the package soundfile and resampled by soxr, the extra `audio`; both are imported when they
are first needed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph"),
)
"""Endings of the files that are taken for audio, in any case; libsndfile reads these formats."""
UNREAD_SUFFIXES = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm", ".mka", ".ape", ".wv", ".mpc")
"""Endings of audio that it does not read."""
_MOST_UPSAMPLING = 100
"""Largest factor by which a clip is resampled: a rate below is that of a broken header."""


def find_clips(folder: Path) -> list[Path]:
    """All audio files below `folder`, sorted, but for folders named with a leading underscore.

    Those hold no class: Speech Commands keeps its background noise in one.

    Args:
        folder: searched with all its subfolders, links too, for files ending in one of `AUDIO_SUFFIXES`.

    Raises:
        ValueError: if `folder` is no folder or holds no such file.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder of audio files, got {folder}, which is not a folder")
    paths = [path for path in walk(folder) if path.suffix.lower() in AUDIO_SUFFIXES]
    paths = [path for path in paths if not path.parent.name.startswith("_")]
    if not paths:
        raise ValueError(f"folder: expected audio files below {folder}, found none")
    return sorted(paths, key=Path.as_posix)


def walk(folder: Path) -> Iterator[Path]:
    """All files below `folder`. Links to folders are followed last, and no folder is entered twice."""
    entered: set[Path] = set()
    waiting, linked = deque([folder]), deque[Path]()
    while waiting or linked:
        place = (waiting or linked).popleft()
        real = place.resolve()
        if real in entered:
            continue
        entered.add(real)
        try:
            inside = sorted(place.iterdir())
        except PermissionError:
            _logger.warning("left out %s, which may not be read", place)
            continue
        for path in inside:
            if path.is_dir():
                (linked if path.is_symlink() else waiting).append(path)
            elif path.is_file():
                yield path


def read_clip(path: Path) -> tuple[Tensor, int]:
    """One audio file as mono samples.

    Args:
        path: a WAV, FLAC, Ogg, MP3 or other file that libsndfile reads, with any number of channels, which are
            averaged. Of a file that was cut short come the samples that are there.

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
