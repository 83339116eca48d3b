"""Audio files: found below a folder, read as mono samples, resampled.

Files are read by the package soundfile and resampled by soxr, the extra `audio`; both are imported when they
are first needed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist"),
    *(".voc", ".htk", ".avr", ".ircam", ".paf", ".pvf", ".8svx", ".wve"),
)
"""Endings of the files that are taken for audio, in any case; libsndfile reads these formats."""
UNREAD_SUFFIXES = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm", ".mka", ".ape", ".wv", ".mpc")
"""Endings of audio that it does not read."""
_SHOWN = 5
"""Most names that a message lists."""
_MOST_UPSAMPLING = 100
"""Largest factor by which a clip is resampled: a rate below is that of a broken header."""


@dataclass
class Unread:
    """Files among others that end in one of `UNREAD_SUFFIXES`; as a string, what to say of them.

    Attributes:
        count: of such files.
        suffixes: that they end in.
        first: the first few of them.
    """

    count: int = 0
    suffixes: set[str] = field(default_factory=set)
    first: list[str] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Count `path`, where it is such a file."""
        suffix = path.suffix.lower()
        if suffix in UNREAD_SUFFIXES:
            self.count += 1
            self.suffixes.add(suffix)
            self.first += [str(path)] if self.count <= _SHOWN else []

    def __str__(self) -> str:
        kinds = ", ".join(sorted(self.suffixes))
        more = f" and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        return (
            f"{self.count} files of kinds that libsndfile does not read ({kinds}): make WAV or FLAC of them: "
            f"{', '.join(self.first)}{more}"
        )


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
    files = [path for path in walk(folder) if not path.parent.name.startswith("_")]
    paths = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        raise ValueError(f"folder: expected audio files below {folder}, found none{_but_unread(files)}")
    return sorted(paths, key=Path.as_posix)


def walk(*folders: Path) -> Iterator[Path]:
    """All files below `folders`. No folder is entered twice, by whatever links.

    These are entered first, in their order, then the folders below them and at last links to others: a folder that
    several lead to is that of the first.
    """
    entered: set[Path] = set()
    waiting, linked = deque(folders), deque[Path]()
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
        if path.is_dir():
            raise ValueError(f"path: expected an audio file, got the folder {path}{_without_audio(path)}") from error
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


def _without_audio(folder: Path) -> str:
    """What an error says of a folder below which no file can be read; nothing where one can."""
    files = list(walk(folder))
    if any(path.suffix.lower() in AUDIO_SUFFIXES for path in files):
        return ""
    return f", below which there is none that can be read{_but_unread(files)}"


def _but_unread(paths: Iterable[Path]) -> str:
    """What a message about missing audio adds, where some of `paths` are audio that is not read."""
    unread = Unread()
    for path in paths:
        unread.add(path)
    return f", but {unread}" if unread.count else ""


def _missing(what: str, package: str) -> str:
    return f"{what} needs the package {package}: pip install 'septr_fast[audio]'"
