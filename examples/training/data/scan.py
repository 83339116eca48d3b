"""Every file of a data set read once before training: what cannot be used is named, counted and left out."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from septr_fast.audio.clips import import_soundfile, load_clip, read_clip
from septr_fast.inference.prediction import Skipped
from septr_fast.progress import track
from training.data.clip_lists import Clip, DataSet, labels_of

_VERSION = 1

_UNKNOWN = 0x7FFF0000
"""Sizes from here up stand for "until the end": programs that write into a pipe, like SoX, do not know the size."""

_logger = logging.getLogger(__name__)


def scan(
    data: DataSet, report: Path | None = None, workers: int = 1, *, rate: int | None = None, progress: bool = True
) -> tuple[DataSet, list[Skipped]]:
    """Read every file of `data` and leave out those that are missing, broken, cut short, empty or not finite.

    Each is named in a warning with the reason. A class that loses all its clips of a split is named in one too.

    Args:
        data: what `find` returned.
        report: a JSON file to write: how many files were read and which were skipped, why. What was found of each
            file is kept beside it, under its name with "-cache" before the suffix; files of the same path, size and
            time of change are not read again. None for neither.
        workers: threads that read.
        rate: in hertz, to which the clips will be resampled; those that cannot be are left out too. None: not tried.
        progress: whether to show a progress bar.

    Returns:
        The data set of what can be used, and what was skipped, in the order of the splits.

    Raises:
        ValueError: for workers below 1, or a split of which nothing can be used.
        ImportError: where soundfile, or soxr for a `rate`, is missing.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    import_soundfile()
    paths = list(dict.fromkeys(clip.path for clips in data.splits.values() for clip in clips))
    faults = _faults(paths, None if report is None else _cache_path(report), workers, rate, progress)
    skipped = [Skipped(path, reason) for path in paths if (reason := faults[path]) is not None]
    for skip in skipped:
        _logger.warning("skipped %s: %s", skip.path, skip.reason)
    if skipped:
        _logger.warning("skipped %d of %d files", len(skipped), len(paths))
    if report is not None:
        entries = [{"file": str(skip.path), "reason": skip.reason} for skip in skipped]
        _write(report, {"files": len(paths), "skipped": len(skipped), "skipped_files": entries})
    return _without(data, {skip.path for skip in skipped}), skipped


def fault(path: Path, rate: int | None = None) -> str | None:
    """Why a file cannot be used, or None if it can.

    Args:
        path: of the file.
        rate: in hertz, to which it will be resampled; None: not tried.
    """
    try:
        if rate is None:
            read_clip(path)
        else:
            load_clip(path, rate)
        missing = missing_bytes(path)
    except (ValueError, OSError) as error:
        return str(error)
    except MemoryError:
        return f"path: expected a clip that fits into memory, got {path}"
    return f"path: expected a whole WAV file, got {path}, cut short by {missing} bytes" if missing else None


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


def _faults(
    paths: Iterable[Path], cache: Path | None, workers: int, rate: int | None, progress: bool
) -> dict[Path, str | None]:
    """The fault of each file, from `cache` where the file has not changed since; `cache` is written again."""
    known = {} if cache is None else _read_cache(cache, rate)
    states = {path: _state(path) for path in paths}
    found = {path: known[str(path)][1] for path, state in states.items() if _is_known(known, path, state)}
    unread = [path for path in states if path not in found]
    if unread:
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(partial(fault, rate=rate), unread)
            read = track(results, "clips", "reading", total=len(unread), shown=progress)
            found |= dict(zip(unread, read, strict=True))
    if cache is not None and unread:
        files = {str(path): [states[path], found[path]] for path in states}
        _write(cache, {"version": _VERSION, "rate": rate, "files": {**known, **files}})
    return found


def _is_known(known: Mapping[str, Any], path: Path, state: list[int] | None) -> bool:
    return state is not None and str(path) in known and known[str(path)][0] == state


def _state(path: Path) -> list[int] | None:
    """Size in bytes and time of change in nanoseconds; None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _without(data: DataSet, paths: set[Path]) -> DataSet:
    """`data` without the files `paths`; raises `ValueError` for a split that loses everything."""
    splits: dict[str, tuple[Clip, ...]] = {}
    for split, clips in data.splits.items():
        splits[split] = tuple(clip for clip in clips if clip.path not in paths)
        if clips and not splits[split]:
            raise ValueError(
                f"data: expected files that can be read in the {split} split, all {len(clips)} were skipped; "
                f"the first is {clips[0].path}"
            )
        place = "to train on" if split == "train" else f"in the {split} split"
        for label in sorted(labels_of(clips) - labels_of(splits[split])):
            _logger.warning("class %r has no clip left %s", data.classes[label], place)
    return replace(data, splits=splits)


def _cache_path(report: Path) -> Path:
    return report.with_name(f"{report.stem}-cache{report.suffix}")


def _read_cache(path: Path, rate: int | None) -> dict[str, Any]:
    """Entries by file: its state and its fault; none for a cache that is missing, broken or of another rate."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = content["version"] == _VERSION and content["rate"] == rate
        return {name: [state, reason] for name, (state, reason) in content["files"].items()} if fits else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _logger.warning("reading all clips again: %s is no cache of this program: %r", path, error)
        return {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        unfinished.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
