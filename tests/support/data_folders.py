"""Tiny data sets, each in its own layout."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from training.data.data_sets import DataSet

RATE = 8000
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
EMOTIONS = ("ANG", "HAP", "SAD")


def write_wav(path: Path, samples: int = 80) -> Path:
    """A short mono WAV file at `RATE`, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, samples, "NONE", "not compressed"))
        file.writeframes((np.arange(samples) % 50 * 100).astype("<i2").tobytes())
    return path


def names(data: DataSet, split: str, folder: Path) -> dict[str, str]:
    """The class of each clip of a split by its path below `folder`."""
    return {clip.path.relative_to(folder).as_posix(): data.classes[clip.labels[0]] for clip in data.splits[split]}


def speech_commands(folder: Path) -> Path:
    """Three words of three speakers, one speaker for each split, and background noise."""
    for word in ("bed", "cat", "dog"):
        for speaker in ("aa11", "bb22", "cc33"):
            for take in range(2):
                write_wav(folder / word / f"{speaker}_nohash_{take}.wav")
    write_wav(folder / "_background_noise_" / "pink_noise.wav")
    for split, speaker in (("validation", "bb22"), ("test", "cc33")):
        lines = [f"{word}/{speaker}_nohash_{take}.wav" for word in ("bed", "cat", "dog") for take in range(2)]
        (folder / LISTS[split]).write_text("\n".join(lines) + "\n")
    (folder / "README.md").write_text("words")
    return folder


def esc50(folder: Path) -> Path:
    """Two categories with a clip in each of five folds; the targets are not in alphabetical order."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for target, category in ((0, "dog"), (7, "cat")):
        for fold in range(1, 6):
            name = f"{fold}-10{fold}-A-{target}.wav"
            write_wav(folder / "audio" / name)
            rows.append(f"{name},{fold},{target},{category},True,10{fold},A")
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return folder


def crema_d(folder: Path, actors: Iterable[int] = range(1001, 1021)) -> Path:
    """Three emotions of every actor."""
    for actor in actors:
        for emotion in EMOTIONS:
            write_wav(folder / "AudioWAV" / f"{actor}_DFA_{emotion}_XX.wav")
    return folder


def class_folders(folder: Path, classes: Sequence[str] = ("bell", "horn"), count: int = 40) -> Path:
    """A folder for each class, with clips of numbered speakers."""
    for name in classes:
        for index in range(count):
            write_wav(folder / name / f"{name}{index}_nohash_0.wav")
            write_wav(folder / name / f"{name}{index}_nohash_1.wav")
    return folder
