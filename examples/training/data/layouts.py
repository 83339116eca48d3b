"""The layouts of Speech Commands, ESC-50, CREMA-D and of a folder per class."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from septr_fast.audio.clips import AUDIO_SUFFIXES
from training.data import splitting
from training.data.clip_lists import SPLIT_NAMES, SPLITS, Clip, DataSet, assemble, audio_files, few, warn_left_out

SPEECH_COMMANDS_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
ESC50_TABLE = Path("meta", "esc50.csv")
ESC50_FOLDS = 5
CREMA_D_FOLDER = "AudioWAV"
CREMA_D_EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def speech_commands(folder: Path) -> DataSet:
    """Google Speech Commands: a folder per word, the validation and test clips in two lists, the rest to train on.

    Lines of words that have no folder are left out with a warning, so that some words can be kept of the 35.

    Raises:
        ValueError: for a missing list, a line that is no "word/file", or too few classes.
    """
    files = {path.relative_to(folder).as_posix() for path in audio_files(folder) if path.parent != folder}
    classes = sorted({name.partition("/")[0] for name in files})
    names: dict[str, set[str]] = {}
    for split, list_name in SPEECH_COMMANDS_LISTS.items():
        listed = _listed(folder / list_name)
        names[split] = {name for name in listed if name.partition("/")[0] in classes}
        warn_left_out((folder / name for name in listed - names[split]), f"files of {list_name} without a class folder")
    shared = names["validation"] & names["test"]
    if shared:
        raise ValueError(f"folder: expected lists without shared files in {folder}, both name {min(shared)!r}")
    names["train"] = files - names["validation"] - names["test"]
    splits = {
        split: [Clip(folder / name, (classes.index(name.partition("/")[0]),)) for name in chosen]
        for split, chosen in names.items()
    }
    return assemble("speech-commands", classes, splits, folder)


def esc50(folder: Path, fold: int) -> DataSet:
    """ESC-50: clips of `fold` to test on, of the next fold to validate, of the others to train on.

    Raises:
        ValueError: for a fold that is not 1 to 5, or a table that is missing, lacks a column or has a broken row.
    """
    if fold not in range(1, ESC50_FOLDS + 1):
        raise ValueError(f"fold: expected 1 to {ESC50_FOLDS}, got {fold}")
    table = folder / ESC50_TABLE
    names: dict[int, str] = {}
    folds: dict[Path, tuple[int, int]] = {}
    for line, name, clip_fold, target, category in _esc50_rows(table):
        if names.setdefault(target, category) != category:
            raise ValueError(
                f"folder: line {line} of {table}: expected target {target} to be {names[target]!r} as before, "
                f"got {category!r}"
            )
        folds[folder / "audio" / name] = (clip_fold, target)
    targets = sorted(names)
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for path, (clip_fold, target) in folds.items():
        split = {fold: "test", fold % ESC50_FOLDS + 1: "validation"}.get(clip_fold, "train")
        splits[split].append(Clip(path, (targets.index(target),)))
    if (folder / "audio").is_dir():
        warn_left_out(set(audio_files(folder / "audio")) - set(folds), f"files that are not in {ESC50_TABLE}")
    return assemble("esc50", [names[target] for target in targets], splits, folder)


def crema_d(folder: Path, shares: tuple[float, float], seed: int) -> DataSet:
    """CREMA-D: the emotion is the third part of a file's name, the actor the first; no actor is in two splits.

    Raises:
        ValueError: if no file's name has the form, or an actor's clips are all the clips of a class.
    """
    place = folder / CREMA_D_FOLDER if (folder / CREMA_D_FOLDER).is_dir() else folder
    files = audio_files(place)
    paths = [path for path in files if is_crema_d(path)]
    warn_left_out(set(files) - set(paths), "files without a name like 1001_DFA_ANG_XX.wav")
    if not paths:
        raise ValueError(f"folder: expected files with names like 1001_DFA_ANG_XX.wav in {place}, found none")
    classes = sorted({_emotion(path) for path in paths})
    split_of = splitting.by_rank({_actor(path) for path in paths}, shares, seed)
    splits = splitting.split(paths, classes, _emotion, lambda path: split_of[_actor(path)])
    return assemble("crema-d", classes, splits, folder)


def is_crema_d(path: Path) -> bool:
    """Whether a file has a name of CREMA-D."""
    parts = path.stem.split("_")
    named = len(parts) == 4 and parts[0].isdecimal() and parts[2] in CREMA_D_EMOTIONS
    return named and path.suffix.lower() in AUDIO_SUFFIXES


def class_folders(folder: Path, shares: tuple[float, float], seed: int) -> DataSet:
    """A folder for each class. A hash of each file's name says its split, and each class has some of every split.

    As in Speech Commands only what stands before "_nohash_" counts, the speaker; equal names in two classes get one
    split. See `training.data.splitting.by_hash`.

    Raises:
        ValueError: if there are no class folders with audio files.
    """
    found = _class_files(folder, audio_files(folder))
    if not found:
        raise ValueError(f"folder: expected a folder of audio files for each class in {folder}, found none")
    classes = sorted(set(found.values()))
    speakers: dict[str, set[str]] = defaultdict(set)
    for path, name in found.items():
        speakers[splitting.speaker(path)].add(name)
    split_of = splitting.by_hash(speakers, shares, seed)
    splits = splitting.split(found, classes, found.__getitem__, lambda path: split_of[splitting.speaker(path)])
    return assemble("folders", classes, splits, folder)


def split_folders(folder: Path) -> DataSet:
    """A folder for each class in train/, and in validation/ (or valid/ or val/) and test/ where these are there.

    Raises:
        ValueError: if there is no train/ with class folders, or two folders for a split.
    """
    given = _folders_of_splits(folder)
    if not holds_classes(given.get("train")):
        raise ValueError(f"folder: expected train/ with a folder of audio files for each class in {folder}")
    paths = audio_files(folder)
    outside = [path for path in paths if not any(path.is_relative_to(top) for top in given.values())]
    warn_left_out(outside, f"files beside the folders of the splits in {folder}")
    files = {split: _class_files(top, paths) for split, top in given.items()}
    classes = sorted({name for found in files.values() for name in found.values()})
    splits = {
        split: [Clip(path, (classes.index(name),)) for path, name in found.items()] for split, found in files.items()
    }
    return assemble("splits", classes, splits, folder)


def look(folder: Path) -> tuple[str, str]:
    """What class folders look like, "splits" or "folders", and why; where the other is possible too, that is said.

    They are splits where train/ holds folders, and nothing lies beside it or another split does.
    """
    tops = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    named = {name: [top for top in tops if top in names] for name, names in SPLIT_NAMES.items()}
    others = [top for top in tops if not any(top in found for found in named.values())]
    if not (named["train"] and holds_classes(folder / "train")):
        return "folders", f"a class for each of {len(tops)} folders"
    if not others:
        return "splits", "train/ holds the folders of the classes; where it is a class itself, say --layout folders"
    beside = few([f"{name}/" for name in others])
    if named["validation"] or named["test"]:
        return "splits", f"train/ has other splits beside it; where {beside} are classes, say --layout folders"
    return "folders", f"train/ is a class like {beside} beside it; where it is a split, say --layout splits"


def holds_classes(train: Path | None) -> bool:
    """Whether `train` is a folder with folders in it."""
    return train is not None and train.is_dir() and any(path.is_dir() for path in train.iterdir())


def _listed(path: Path) -> set[str]:
    """Names in a list of Speech Commands."""
    if not path.is_file():
        raise ValueError(f"folder: expected the list {path}, there is none")
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and not re.fullmatch(r"[^/]+(/[^/]+)+", line):
            raise ValueError(f"folder: line {number} of {path}: expected word/file, got {line!r}")
    return {line for line in lines if line}


def _esc50_rows(table: Path) -> Iterable[tuple[int, str, int, int, str]]:
    """Line number, file name, fold, target and category of each row."""
    columns = ("filename", "fold", "target", "category")
    if not table.is_file():
        raise ValueError(f"folder: expected the table {table}, there is none")
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"folder: expected the columns {', '.join(columns)} in {table}, missing {missing}")
        for row in reader:
            name, fold, target, category = (row[column] for column in columns)
            fold_in_range = (fold or "").isdecimal() and 1 <= int(fold) <= ESC50_FOLDS
            if not (name and category and fold_in_range and (target or "").isdecimal()):
                raise ValueError(
                    f"folder: line {reader.line_num} of {table}: expected a file name, a fold of 1 to {ESC50_FOLDS}, "
                    f"a target and a category, got {[name, fold, target, category]}"
                )
            yield reader.line_num, name, int(fold), int(target), category


def _actor(path: Path) -> str:
    return path.stem.split("_")[0]


def _emotion(path: Path) -> str:
    return path.stem.split("_")[2]


def _folders_of_splits(folder: Path) -> dict[str, Path]:
    """The folders of the splits, by split."""
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        present = [folder / name for name in names if (folder / name).is_dir()]
        if len(present) > 1:
            raise ValueError(f"folder: expected one folder for the {split} split in {folder}, got {len(present)}")
        if present:
            found[split] = present[0]
    return found


def _class_files(folder: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """The class of those of `paths` that lie in a class folder in `folder`."""
    inside = [path for path in paths if path.is_relative_to(folder)]
    found = {path: path.relative_to(folder).parts[0] for path in inside if path.parent != folder}
    warn_left_out(set(inside) - set(found), f"files beside the class folders in {folder}")
    folders = {path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    names = set(found.values())
    empty = {path for path in folders if path.name not in names}
    warn_left_out(empty, f"folders without audio files in {folder}")
    return found
