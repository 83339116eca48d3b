"""The layouts of Speech Commands, ESC-50, CREMA-D and of a folder per class."""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from septr_fast.audio.clips import AUDIO_SUFFIXES, walk
from training.data import splitting
from training.data.clip_lists import SPLITS, Clip, DataSet, assemble, audio_files, few, split_called, warn_left_out

SPEECH_COMMANDS_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
ESC50_TABLE = Path("meta", "esc50.csv")
ESC50_FOLDS = 5
CREMA_D_FOLDER = "AudioWAV"
CREMA_D_EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")

_logger = logging.getLogger(__name__)


def speech_commands(folder: Path) -> DataSet:
    """Google Speech Commands: a folder per word, the validation and test clips in two lists, the rest to train on.

    Lines of words that have no folder are left out with a warning, so that some words can be kept of the 35.

    Raises:
        ValueError: for a missing list, a line that is no "word/file", too few classes, or two that are one folder.
    """
    files = {path.relative_to(folder).as_posix() for path in _files_of_classes(folder) if path.parent != folder}
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
        ValueError: if no file's name has the form, or no actor to train on has clips of a class.
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
    advice = (
        f"splits are by actor, {len(split_of)} here ({few(sorted(split_of))}): add clips of more actors, or put the "
        "clips into a folder for each emotion and say --layout folders"
    )
    if len(split_of) < 1 + sum(map(bool, shares)):
        _logger.warning("few actors in %s: %s", place, advice)
    return assemble("crema-d", classes, splits, folder, advice=advice)


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
        ValueError: if there are no class folders with audio files, or two of them are one folder.
    """
    found = _class_files(folder, _files_of_classes(folder))
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
    """A folder for each class in train/, and in validation/ and test/ where these are there; see `SPLIT_NAMES`.

    Where validation/ and test/, or folders of a class in both, are one folder by a link, both splits have its clips.

    Raises:
        ValueError: if there is no train/ with class folders, two folders for a split, or two splits or classes that are
            one folder.
    """
    given = _folders_of_splits(folder)
    if "train" not in given or not _folders(given["train"]):
        raise ValueError(f"folder: expected train/ with a folder of audio files for each class in {folder}")
    folders = [*given.values(), *(inner for top in given.values() for inner in _folders(top))]
    same = _same_folders(folders, folder)
    _check_same(same, folder, shared={given[split] for split in ("validation", "test") if split in given})
    paths = audio_files(folder, (path for path in folders if path not in same))
    links = {other: link for link, other in same.items()}
    own_folders = [(path, Path(folder, *path.relative_to(folder).parts[:2])) for path in paths]
    paths += [links[own] / path.relative_to(own) for path, own in own_folders if own in links]
    outside = [path for path in paths if not any(path.is_relative_to(top) for top in given.values())]
    warn_left_out(outside, f"files beside the folders of the splits in {folder}")
    files = {split: _class_files(top, paths) for split, top in given.items()}
    classes = sorted({name for found in files.values() for name in found.values()})
    splits = {
        split: [Clip(path, (classes.index(name),)) for path, name in found.items()] for split, found in files.items()
    }
    return assemble("splits", classes, splits, folder)


def look(folder: Path) -> tuple[str, str]:
    """What clips look like that no list names, "crema-d", "splits" or "folders", and why.

    They are CREMA-D by their names, unless folders of classes with audio lie beside them and not beside AudioWAV/.
    Where another reading is possible too, that is said.
    """
    files = (file for place in (folder / CREMA_D_FOLDER, folder) if place.is_dir() for file in place.iterdir())
    place = next((file.parent for file in files if is_crema_d(file) and file.is_file()), None)
    if place is None:
        return _look_at_folders(folder)
    beside = [path for path in _folders(folder) if path != place and _holds_audio(path)]
    if not beside:
        return "crema-d", "by the names of its files"
    if place.absolute().name == CREMA_D_FOLDER:
        return "crema-d", f"by the names of its files; where {_named(beside)} are classes, say --layout folders"
    layout, why = _look_at_folders(folder)
    return layout, f"{why}; where the files named like 1001_DFA_ANG_XX.wav are the clips, say --layout crema-d"


def _look_at_folders(folder: Path) -> tuple[str, str]:
    """What class folders look like, "splits" or "folders", and why; where the other is possible too, that is said.

    They are splits where train/ holds folders, and nothing lies beside it or another split does.
    """
    tops = _folders(folder)
    splits = [path for path in tops if split_called(path.name)]
    others = [path for path in tops if not split_called(path.name)]
    train = [path for path in splits if split_called(path.name) == "train" and _folders(path)]
    if not splits:
        return "folders", f"a class for each of {len(tops)} folders"
    if not train:
        why = f"a class for each of {len(tops)} folders, {_named(splits)} too; where these are splits"
        return "folders", f"{why}, say --layout splits, which takes train/ with a folder for each class"
    if not others:
        why = f"{_named(train)} holds the folders of the classes"
        return "splits", f"{why}; where it is a class itself, say --layout folders"
    if len(splits) > len(train):
        why = f"{_named(train)} has other splits beside it"
        return "splits", f"{why}; where {_named(others)} are classes, say --layout folders"
    why = f"{_named(train)} is a class like {_named(others)} beside it"
    return "folders", f"{why}; where it is a split, say --layout splits"


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


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` that are neither hidden nor set aside, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def _named(folders: Iterable[Path]) -> str:
    """The names of the first of `folders`."""
    return few([f"{path.name}/" for path in folders])


def _holds_audio(folder: Path) -> bool:
    return any(path.suffix.lower() in AUDIO_SUFFIXES for path in walk(folder))


def _folders_of_splits(folder: Path) -> dict[str, Path]:
    """The folders of the splits, by split."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        present = [path for path in _folders(folder) if split_called(path.name) == split]
        if len(present) > 1:
            raise ValueError(
                f"folder: expected one folder for the {split} split in {folder}, got {len(present)}: "
                f"{_named(present)}; where these are classes, say --layout folders"
            )
        if present:
            found[split] = present[0]
    return found


def _files_of_classes(folder: Path) -> list[Path]:
    """Audio files below `folder`, where every folder in it is a class; raises `ValueError` where two are one."""
    folders = _folders(folder)
    _check_same(_same_folders(folders, folder), folder)
    return audio_files(folder, folders)


def _same_folders(folders: Iterable[Path], top: Path) -> dict[Path, Path]:
    """Those of `folders` below `top` that are another of them by a link, each with that other one."""
    ends, real_top = {path: path.resolve() for path in folders}, top.resolve()
    first: dict[Path, Path] = {}
    for path in sorted(ends, key=lambda path: ends[path] != real_top / path.relative_to(top)):
        first.setdefault(ends[path], path)
    return {path: first[end] for path, end in ends.items() if first[end] != path}


def _check_same(same: Mapping[Path, Path], top: Path, shared: Set[Path] = frozenset()) -> None:
    """Raise `ValueError` for folders that are the same, but for those of one class in both of `shared`; warn of these.

    Args:
        same: what `_same_folders` returned.
        top: the folder that they lie in.
        shared: folders of splits that may have the same clips.
    """
    told = []
    for link, other in same.items():
        one, two = (path.relative_to(top) for path in (link, other))
        if not {top / one.parts[0], top / two.parts[0]} <= shared or one.parts[1:] != two.parts[1:]:
            raise ValueError(
                f"folder: expected a folder of its own for each class and split in {top}, got {one}, a link to the "
                f"same folder as {two}"
            )
        if link.parent not in same:
            told.append(f"{one} is a link to the same folder as {two}")
    if told:
        _logger.warning("the same clips are in two splits: %s", few(told))


def _class_files(folder: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """The class of those of `paths` that lie in a class folder in `folder`."""
    inside = [path for path in paths if path.is_relative_to(folder)]
    found = {path: path.relative_to(folder).parts[0] for path in inside if path.parent != folder}
    warn_left_out(set(inside) - set(found), f"files beside the class folders in {folder}")
    names = set(found.values())
    empty = {path for path in _folders(folder) if path.name not in names}
    warn_left_out(empty, f"folders without audio files in {folder}")
    return found
