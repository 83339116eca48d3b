"""Data sets found in a folder: which layout it has, and the labelled files of its splits."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from septr_fast.commands.options import shown
from training.data import layouts
from training.data.clip_lists import SPLITS, Clip, DataSet

__all__ = ["LAYOUTS", "SPLITS", "Clip", "DataSet", "detect", "find", "summary"]

LAYOUTS = ("auto", "speech-commands", "esc50", "crema-d", "folders", "splits")

SHOWN = 40
"""Classes of which a summary has a line."""

_logger = logging.getLogger(__name__)


def find(
    folder: Path,
    layout: str = "auto",
    *,
    fold: int = 1,
    shares: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
) -> DataSet:
    """The labelled audio files below `folder`, by split. No file is opened.

    Args:
        folder: where the data set lies.
        layout: "speech-commands" (a folder per word and the lists validation_list.txt and testing_list.txt), "esc50"
            (audio/ and meta/esc50.csv), "crema-d" (names like 1001_DFA_ANG_XX.wav, here or in AudioWAV/), "folders"
            (a folder per class), "splits" (a folder per class in train/, validation/ and test/) or "auto", the one it
            looks like, which is logged.
        fold: of ESC-50, 1 to 5: the clips to test on; those of the next fold are the validation split.
        shares: of validation and test where the layout does not say what belongs to them: of the actors for
            "crema-d", of the files for "folders", with some of every class.
        seed: chooses these.

    Returns:
        Classes in alphabetical order, in ESC-50 in the order of its targets. Each split but "train" may be empty.
        Files that a list names are clips whether they exist or not: whoever reads them finds out.

    Raises:
        ValueError: for an argument out of range, a folder that has not the layout, fewer than two classes or a class
            without clips to train on; it names the culprit.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not folder.is_dir():
        raise ValueError(f"folder: expected the folder of a data set, got {folder}, which is not a folder")
    if not (len(shares) == 2 and min(shares) >= 0 and sum(shares) < 1):
        raise ValueError(f"shares: expected two of at least 0 with a sum below 1, got {shares}")
    chosen, why = detect(folder) if layout == "auto" else (layout, "as was asked")
    _logger.info("layout %s: %s", chosen, why)
    if chosen == "speech-commands":
        return layouts.speech_commands(folder)
    if chosen == "esc50":
        return layouts.esc50(folder, fold)
    if chosen == "crema-d":
        return layouts.crema_d(folder, shares, seed)
    if chosen == "splits":
        return layouts.split_folders(folder)
    return layouts.class_folders(folder, shares, seed)


def summary(data: DataSet) -> str:
    """A line for each class, of many for the first, with its clips in each split."""
    counts = Counter((split, label) for split, clips in data.splits.items() for clip in clips for label in clip.labels)
    lines = [
        f"  {shown(name)}: {', '.join(f'{counts[split, label]} {split}' for split in SPLITS)}"
        for label, name in enumerate(data.classes[:SHOWN])
    ]
    more = len(data.classes) - SHOWN
    several = Counter(min(len(clip.labels), 2) for clips in data.splits.values() for clip in clips)
    other = {"several labels": several[2], "no label": several[0]}
    more_lines = [f"  and {more} more"] if more > 0 else []
    more_lines += [f"  {count} clips with {kind}" for kind, count in other.items() if count]
    return "\n".join([f"{len(data.classes)} classes:", *lines, *more_lines])


def detect(folder: Path) -> tuple[str, str]:
    """The layout that `folder` looks like, and why; "folders" where it looks like none of the others."""
    if any((folder / name).is_file() for name in layouts.SPEECH_COMMANDS_LISTS.values()):
        return "speech-commands", "by its lists of clips"
    if (folder / layouts.ESC50_TABLE).is_file():
        return "esc50", f"by its table {layouts.ESC50_TABLE}"
    return layouts.look(folder)
