"""A table of files and their labels, any number for each: FSD50K, AudioSet and whatever is labelled by hand."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from septr_fast.audio.clips import AUDIO_SUFFIXES
from training.data import splitting
from training.data.clip_lists import SPLIT_NAMES, SPLITS, Clip, DataSet, assemble, split_called

COLUMNS = {"file": ("file", "filename", "path", "fname"), "labels": ("labels", "label"), "split": ("split",)}
"""What a column holds, and its names, in any case."""

_NAMED = [name for names in SPLIT_NAMES.values() for name in names]
_BETWEEN_COLUMNS = ",;\t"
_BETWEEN_LABELS = ";|,"
"""The first of these that any row's labels hold parts them: names may have commas where something else does."""


def labelled_files(table: Path, folder: Path, shares: tuple[float, float] = (0.1, 0.1), seed: int = 0) -> DataSet:
    """Files below `folder` with their labels in `table`, a CSV with a header.

    Its columns are "file" (or "filename", "path", "fname"), "labels" (or "label") and, where the table says it,
    "split"; what else there is does not matter. Columns are parted by commas, semicolons or tabs, labels by semicolons,
    bars or commas. A file may have a row for each of its labels, and no label at all. Without "split" a hash of the
    name says it, what stands before "_nohash_" alone, with some of every class where there is enough.

    Args:
        table: the CSV, UTF-8.
        folder: that the names of files are relative to; a name may lack its suffix.
        shares: of validation and test, where the table has no splits.
        seed: chooses these.

    Raises:
        ValueError: for a table that is missing, lacks a column, has a broken row, no labels, or no clips of a class to
            train on.
    """
    labels: dict[Path, set[str]] = defaultdict(set)
    splits: dict[Path, str] = {}
    for line, name, own, split in _rows(table):
        path = _found(folder, name)
        labels[path] |= own
        if splits.setdefault(path, split) != split:
            raise ValueError(
                f"labels: line {line} of {table}: expected {name} in one split, got {splits[path]}, {split}"
            )
    classes = sorted(set().union(*labels.values()))
    if not any(splits.values()):
        groups: dict[str, set[str]] = defaultdict(set)
        for path, own in labels.items():
            groups[_group(path, folder)] |= own
        found = splitting.by_hash(groups, shares, seed)
        splits = {path: found[_group(path, folder)] for path in labels}
    clips: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for path, own in labels.items():
        clips[splits[path]].append(Clip(path, tuple(sorted(map(classes.index, own)))))
    return assemble("labels", classes, clips, table, least=1, subject="labels")


def _group(path: Path, folder: Path) -> str:
    """What stays in one split: the recordings of a speaker in one folder, wherever `folder` lies."""
    return Path(os.path.relpath(path, folder)).with_name(splitting.speaker(path)).as_posix()


def _rows(table: Path) -> Iterator[tuple[int, str, set[str], str]]:
    """Line, file, labels and split, "" for none, of each row."""
    if not table.is_file():
        raise ValueError(f"labels: expected a table of files and labels, there is no {table}")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]} at {error.start}"
        raise ValueError(f"labels: expected UTF-8 in {table}, got {found}") from error
    mark = max(_BETWEEN_COLUMNS, key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
    columns, rows = _columns(table, reader.fieldnames or ()), []
    for row in reader:
        if any(cell.strip() for cell in row.pop(None, None) or ()):
            raise ValueError(
                f"labels: line {reader.line_num} of {table}: expected a cell for each of the {len(row)} columns, "
                "got more: labels that hold what parts the columns have to be quoted"
            )
        rows.append((reader.line_num, {what: row[name] or "" for what, name in columns.items()}))
    between = next((mark for mark in _BETWEEN_LABELS if any(mark in row["labels"] for _, row in rows)), ",")
    has_splits = any(row.get("split", "").strip() for _, row in rows)
    for line, row in rows:
        name = row["file"].strip()
        if not name:
            raise ValueError(f"labels: line {line} of {table}: expected the name of a file, got none")
        split = split_called(row.get("split", "").strip()) if has_splits else ""
        if split is None:
            raise ValueError(
                f"labels: line {line} of {table}: expected a split, one of {', '.join(_NAMED)}, got {row['split']!r}"
            )
        yield line, name, {label.strip() for label in row["labels"].split(between) if label.strip()}, split


def _columns(table: Path, names: Sequence[str]) -> dict[str, str]:
    """The names in the table's header by what they hold."""
    given = {name.strip().lower(): name for name in reversed(names) if name}
    found = {what: given[name] for what, known in COLUMNS.items() for name in reversed(known) if name in given}
    missing = [what for what in ("file", "labels") if what not in found]
    if missing:
        raise ValueError(
            f"labels: expected a header with the columns file and labels in {table}, "
            f"missing {' and '.join(missing)}, got {', '.join(names) or 'none'}"
        )
    return found


def _found(folder: Path, name: str) -> Path:
    """The file that is called `name`, by one path however it is written; it may lack its suffix.

    Whether there is such a file is found out when it is read.
    """
    path = Path(os.path.abspath(folder / name))
    if "\\" in name and not path.is_file():
        path = Path(os.path.abspath(folder / PureWindowsPath(name)))
    if path.suffix.lower() in AUDIO_SUFFIXES or path.is_file():
        return path
    named = (path.with_name(path.name + suffix) for suffix in sorted(AUDIO_SUFFIXES))
    return next((candidate for candidate in named if candidate.is_file()), path)
