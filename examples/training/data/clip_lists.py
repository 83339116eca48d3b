"""What a data set is here: a list of labelled files for each split."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from septr_fast.audio.clips import AUDIO_SUFFIXES, UNREAD_SUFFIXES, Unread, walk

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What a split is called, by folders and in tables, in any case."""

_PURPOSES = {"validation": "which chooses the best epoch", "test": "which says nothing of them"}
_SHOWN = 5
"""Most names that a warning lists."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """An audio file and the indices of its classes: one, or in data with several labels any number."""

    path: Path
    labels: tuple[int, ...]


@dataclass(frozen=True)
class DataSet:
    """Labelled files by split.

    Attributes:
        name: of the layout that the files were found in.
        classes: names, one for each label.
        splits: clips of "train", "validation" and "test"; each but "train" may be empty.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Clip, ...]]

    @property
    def has_one_label_each(self) -> bool:
        """Whether every clip has one label out of several classes, so that a softmax fits it."""
        return len(self.classes) > 1 and all(len(clip.labels) == 1 for clips in self.splits.values() for clip in clips)


def split_called(name: str) -> str | None:
    """The split that goes by `name`; None where none does."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def labels_of(clips: Iterable[Clip]) -> set[int]:
    """All labels that any of `clips` has."""
    return {label for clip in clips for label in clip.labels}


def assemble(
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, Iterable[Clip]],
    folder: Path,
    least: int = 2,
    subject: str = "folder",
    advice: str = "add some, or take the class out",
) -> DataSet:
    """A data set of `splits`, sorted by path; splits that are not given are empty. Errors name `subject`.

    A split without clips, or without those of some classes, is told in a warning. What to do where a class has no clips
    to train on is the `advice`.

    Raises:
        ValueError: for fewer than `least` classes, or a class without clips to train on; `folder` is in the message.
    """
    if len(classes) < least:
        found = ", ".join(map(repr, classes)) or "none"
        raise ValueError(
            f"{subject}: expected at least {least} class{'es' if least > 1 else ''} in {folder}, "
            f"got {len(classes)}: {found}"
            + (f"; it was read as {name}, --layout asks for another reading" if subject == "folder" else "")
        )
    lists = {split: tuple(sorted(splits.get(split, ()), key=_order)) for split in SPLITS}
    trained = labels_of(lists["train"])
    untrained = [repr(class_name) for label, class_name in enumerate(classes) if label not in trained]
    if untrained:
        raise ValueError(
            f"{subject}: expected clips of every class to train on in {folder}, got none of {few(untrained)}: {advice}"
        )
    for split, clips in lists.items():
        present = labels_of(clips)
        missing = [repr(class_name) for label, class_name in enumerate(classes) if label not in present]
        if not clips and any(lists.values()):
            _logger.warning("no clip of %s is in the %s split: nothing is said of it", folder, split)
        elif missing:
            what = f"{len(missing)} of {len(classes)} classes have no clip in the {split} split, {_PURPOSES[split]}"
            _logger.warning("%s: %s", what, few(missing))
    return DataSet(name, tuple(classes), lists)


def audio_files(folder: Path, first: Iterable[Path] = ()) -> list[Path]:
    """Audio files below `folder`, sorted.

    Links to folders are followed, each folder once: where several lead to one, it is that in `first`. Left out are
    hidden files, folders that are hidden or named with a leading underscore (Speech Commands keeps its background noise
    in one) and files of other kinds by their names: with a warning that counts them, but for those directly in
    `folder`, which describe it.

    Raises:
        ValueError: if `folder` is no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder, got {folder}, which is not one")
    files = [path for path in walk(folder, *first) if not _is_aside(path.relative_to(folder))]
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    others = [path for path in files if path.suffix.lower() not in (*AUDIO_SUFFIXES, *UNREAD_SUFFIXES)]
    unread = Unread()
    for path in files:
        unread.add(path)
    if unread.count:
        _logger.warning("left out %s", unread)
    warn_left_out([path for path in others if path.parent != folder], "files that are no audio by their names")
    return sorted(audio, key=Path.as_posix)


def warn_left_out(paths: Iterable[Path], kind: str) -> None:
    """Log a warning that counts `paths`, says of what `kind` they are and names the first; none: no warning."""
    names = sorted(map(str, paths))
    if names:
        _logger.warning("left out %d %s: %s", len(names), kind, few(names))


def _order(clip: Clip) -> str:
    return clip.path.as_posix()


def few(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_aside(path: Path) -> bool:
    """Whether a file's path below a data set's folder is hidden, or one of its folders is set aside."""
    return path.name.startswith(".") or any(part.startswith((".", "_")) for part in path.parts[:-1])
