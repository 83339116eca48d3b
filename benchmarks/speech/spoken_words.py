"""The words of Google Speech Commands spoken offline by eSpeak NG: a stand-in for the recordings."""

from __future__ import annotations

import itertools
import os
import re
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.speech import espeak
from benchmarks.speech.espeak import PITCH, RATE
from septr_fast.progress import track

_VOCABULARY = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on "
    "one right seven sheila six stop three tree two up visual wow yes zero"
)

WORDS: tuple[str, ...] = tuple(_VOCABULARY.split())
"""The 35 words of Google Speech Commands v2."""

VOICES: dict[str, tuple[str, ...]] = {
    "train": (
        "en-us+m1",
        "en-gb-x-rp+m2",
        "en-gb-scotland+m3",
        "en-029+m4",
        "en+f1",
        "en-us+f3",
        "en-us-nyc+f5",
        "en-gb-x-gbclan+Alicia",
        "en-us-nyc+Lee",
        "en-us+announcer",
        "en-gb-x-gbcwmd+zac",
        "en+ian",
        "en-us+kaukovalta",
        "en-gb-x-rp+klatt2",
        "en-029+steph",
        "en-gb-scotland+belinda",
        "en-us+linda",
        "en-gb-x-gbclan+Jacky",
        "en-gb-x-rp+anika",
        "en-us-nyc+sandro",
        "en-gb-x-gbcwmd+Storm",
        "en+grandma",
        "en-029+Diogo",
        "en-us+boris",
    ),
    "validation": (
        "en-us+f4",
        "en-gb-x-rp+david",
        "en-us-nyc+marcelo",
        "en-gb-scotland+travis",
        "en+victor",
        "en-029+pedro",
    ),
    "test": (
        "en-us+Andrea",
        "en+Annie",
        "en-gb-x-rp+shelby",
        "en-us-nyc+m8",
        "en-gb-scotland+norbert",
        "en-029+robert",
        "en-gb-x-gbclan+edward",
        "en-us+iven2",
    ),
}
"""Voices by split, each an accent and a variant; no variant, that is no timbre, is in two splits."""

_RATES = (80, 450)
_PITCHES = (0, 100)
_VOICE_PATTERN = re.compile(r"[A-Za-z0-9-]+(\+[A-Za-z0-9-]+)?")
_NAME_PATTERN = re.compile(r"[A-Za-z0-9-]+")


def _check_names(words: Iterable[str], voices: Mapping[str, Iterable[str]]) -> None:
    """Raise `ValueError` for names that do not make file names of their own."""
    for argument, names, pattern in (
        ("words", words, _NAME_PATTERN),
        ("voices", voices, _NAME_PATTERN),
        ("voices", (voice for split in voices.values() for voice in split), _VOICE_PATTERN),
    ):
        for name in names:
            if pattern.fullmatch(name) is None:
                raise ValueError(
                    f"{argument}: expected letters, digits and hyphens (a voice: accent+variant), got {name!r}"
                )


def _write(path: Path, samples: NDArray[np.int16], rate: int) -> None:
    """Write mono samples `(samples,)` at `rate` hertz to `path` as 16-bit PCM, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as stream, wave.open(stream, "wb") as file:
            file.setparams((1, 2, rate, len(samples), "NONE", "not compressed"))
            file.writeframes(samples.astype("<i2").tobytes())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_range(argument: str, values: Iterable[int], least: int, most: int) -> None:
    """Raise `ValueError` for a value that eSpeak NG would cut to its range."""
    for value in values:
        if not least <= value <= most:
            raise ValueError(f"{argument}: expected {least} to {most}, got {value}")


def clip_path(folder: Path, split: str, word: str, voice: str, rate: int = RATE, pitch: int = PITCH) -> Path:
    """Where `speak` writes a word: `folder/<split>/<word>/<voice>.wav`.

    In file names the "+" of a voice is "_"; "_<rate>_<pitch>" follows unless both are the usual ones.
    """
    manner = "" if (rate, pitch) == (RATE, PITCH) else f"_{rate}_{pitch}"
    return folder / split / word / f"{voice.replace('+', '_')}{manner}.wav"


def speak(
    folder: Path,
    words: tuple[str, ...] = WORDS,
    voices: Mapping[str, tuple[str, ...]] = VOICES,
    *,
    rates: tuple[int, ...] = (RATE,),
    pitches: tuple[int, ...] = (PITCH,),
    progress: bool = True,
) -> Path:
    """Speak every word in every voice, at every rate and pitch, mono 16-bit PCM; `clip_path` says where.

    Files already there are left as they are, so a run that was cut off goes on where it ended.

    Args:
        folder: made if missing.
        words: English words of letters, digits and hyphens.
        voices: by split, voices of eSpeak NG as "accent" or "accent+variant".
        rates: speaking rates in words per minute, 80 to 450.
        pitches: from 0 to 100 of a voice's range.
        progress: whether to show a progress bar.

    Returns:
        `folder`.

    Raises:
        ImportError: if something is to be spoken and `espeakng_loader` is not installed.
        RuntimeError: if a voice does not exist or gives no sound, with its name, the word and the status.
        ValueError: for a word, split or voice with other characters, or a rate or pitch out of range.
    """
    _check_names(words, voices)
    _check_range("rates", rates, *_RATES)
    _check_range("pitches", pitches, *_PITCHES)
    paths = {
        clip_path(folder, split, word, voice, rate, pitch): (voice, word, rate, pitch)
        for split, names in voices.items()
        for voice, word, rate, pitch in itertools.product(names, words, rates, pitches)
    }
    missing = {path: clip for path, clip in paths.items() if not path.exists()}
    if not missing:
        return folder
    library_path, data = espeak.locate()
    for path, clip in track(missing.items(), "clips", "speaking", shown=progress):
        with espeak.engine(library_path, data) as engine:
            samples, sampling_rate = engine.say(*clip), engine.rate
        _write(path, samples, sampling_rate)
    return folder
