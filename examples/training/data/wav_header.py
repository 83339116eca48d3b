"""Whether a WAV file was cut short: libsndfile reads what is there and does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_UNKNOWN = 0x7FFF0000
"""Sizes from here up stand for "until the end": programs that write into a pipe, like SoX, do not know the size."""


def missing_bytes(path: Path) -> int:
    """Bytes of samples that the header of a WAV file announces and the file has not; 0 for another file.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return 0
        announced = _seek_samples(file)
        start = file.tell()
        here = file.seek(0, 2) - start
    return max(announced - here, 0) if announced < _UNKNOWN else 0


def _seek_samples(file: BinaryIO) -> int:
    """Go to the first sample of a WAV file, from behind "WAVE", and return the size of the samples in bytes."""
    while len(header := file.read(8)) == 8:
        size = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            return size
        file.seek(size + size % 2, 1)
    return 0
