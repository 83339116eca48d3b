"""The default data: words spoken by eSpeak NG, synthetic speech made on the spot.

Voices of validation and test, accents and timbres, are never heard in training. It stands in for recordings and is
easier than they are: nobody mumbles, and there is no room around the speaker.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from benchmarks.speech import spoken_words as speech
from training.data.clip_lists import Clip, DataSet, assemble

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "forward", "backward")
"""The ten commands that most work on Speech Commands tells apart, and two of the five added in its version 2."""

RATES = (140, 175, 220)
"""Speaking rates in words per minute."""

PITCHES = (30, 50, 70)
"""Pitches, from 0 to 100 of a voice's range."""


def spoken_words(
    folder: Path,
    words: tuple[str, ...] = WORDS,
    progress: bool = True,
    *,
    rates: tuple[int, ...] = RATES,
    pitches: tuple[int, ...] = PITCHES,
    voices: Mapping[str, tuple[str, ...]] = speech.VOICES,
) -> DataSet:
    """Words in every voice at every rate and pitch, spoken once and kept below `folder`.

    A file is written whole or not at all, and a call that was cut off goes on where it ended. The data set has the
    files of these arguments alone, whatever else lies in `folder`.

    Args:
        folder: made if missing; the files lie in `<split>/<word>/`.
        words: English words of letters, digits and hyphens; the classes, sorted.
        progress: whether to show a progress bar.
        rates: in words per minute, 80 to 450.
        pitches: from 0 to 100 of a voice's range.
        voices: of eSpeak NG, by split.

    Raises:
        ImportError: if something is to be spoken and `espeakng_loader` is not installed.
        RuntimeError: if a voice does not exist or gives no sound.
        ValueError: for fewer than two words, or a word, voice, rate or pitch that eSpeak NG would not take.
    """
    classes = sorted(set(words))
    speech.speak(folder, tuple(classes), voices, rates=rates, pitches=pitches, progress=progress)
    splits = {
        split: [
            Clip(speech.clip_path(folder, split, word, voice, rate, pitch), (label,))
            for voice, (label, word), rate, pitch in itertools.product(names, enumerate(classes), rates, pitches)
        ]
        for split, names in voices.items()
    }
    return assemble("spoken words", classes, splits, folder)
