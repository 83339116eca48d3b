"""Many audio files: found below folders, shared by processes, their classes written as lines of JSON.

A file's line is written whole once it is classified, so a run that was stopped goes on with the files that have none.
Each of several processes takes the files that a hash of their names gives it, whatever else comes or goes, and writes
to a file of its own. Of each file that has its line eight bytes are held, and no more.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from septr_fast import progress
from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio.clips import AUDIO_SUFFIXES, Unread, walk
from septr_fast.inference.prediction import Prediction, Skipped, classify

Describe = Callable[[Prediction | Skipped], Mapping[str, Any]]
"""What the line of a file says: "file", its name, and what JSON can write besides."""
_AT_A_TIME = 1 << 16


class Place(NamedTuple):
    """Which of several processes this is.

    Attributes:
        rank: its number among all.
        local: its number among those on its machine, which is that of its GPU.
        processes: how many there are.
    """

    rank: int = 0
    local: int = 0
    processes: int = 1


ALONE = Place()


class Lines(NamedTuple):
    """Where lines go, and from what run they are.

    Attributes:
        out: the file of the first process; that of the second has ".1" in front of its suffix, and so on.
        run: of which all lines must be, see `mark`.
        describe: what a line says.
    """

    out: Path
    run: str
    describe: Describe


@dataclass
class Tally:
    """Files of a process: those it wrote lines of, those of these it could not classify, those done before.

    The first process counts as well what lies below the folders and is audio of kinds that are not read.
    """

    written: int = 0
    skipped: int = 0
    before: int = 0
    unread: Unread = field(default_factory=Unread)


def place_of(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that `torchrun` and `accelerate launch` give a process; the only one without them."""
    rank, local, processes = (int(environment.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return Place(rank, local, max(1, processes))


def audio_files(given: Iterable[Path], unread: Unread | None = None) -> Iterator[Path]:
    """Files as they are given, and those below folders that end in one of `AUDIO_SUFFIXES`, as `walk` finds them.

    A folder without any comes itself, for its reader to tell. Audio below folders that is not read is added to
    `unread`, where that is given.
    """
    unread = Unread() if unread is None else unread
    for path in given:
        if not path.is_dir():
            yield path
            continue
        empty = True
        for file in walk(path):
            if file.suffix.lower() in AUDIO_SUFFIXES:
                empty = False
                yield file
            unread.add(file)
        if empty:
            yield path


def classify_to_lines(
    bundle: Bundle,
    given: Sequence[Path],
    lines: Lines,
    place: Place = ALONE,
    *,
    batch: int,
    hop: float | None,
    readers: int,
) -> Tally:
    """Classify this process's share of the files that have no line yet, and write their lines.

    Args:
        bundle: what `checkpoints.load` returned.
        given: files and folders.
        lines: where they go.
        place: of this process.
        batch: as `classify` takes it, and so are the others.
        hop: between windows.
        readers: threads.

    Raises:
        ValueError: where a file for lines holds something else, or lines of another run; for an argument out of range.
        OSError: where it cannot be written.
    """
    written = parts(lines.out)
    done = Done(name for part in written.values() for name in names(part, lines.run))
    for number, part in written.items():
        if number == place.rank or (place.rank == 0 and number >= place.processes):
            cut_broken_line(part)

    def share(unread: Unread | None = None) -> Iterator[Path]:
        for path in audio_files(given, unread):
            if key(str(path)) % place.processes == place.rank:
                yield path

    tally, total = Tally(), 0
    for path in share(tally.unread if place.rank == 0 else None):
        tally.before += path in done
        total += 1
    waiting = (path for path in share() if path not in done)
    shown = place.rank == 0
    with (
        part_of(lines.out, place.rank).open("ab") as file,
        progress.start(total, "files", "classifying", done=tally.before, shown=shown) as bar,
    ):
        for result in classify(bundle, waiting, batch=batch, hop=hop, readers=readers):
            file.write(json.dumps({"run": lines.run, **lines.describe(result)}).encode() + b"\n")
            file.flush()
            tally.written += 1
            tally.skipped += isinstance(result, Skipped)
            bar.advance()
    return tally


def mark(checkpoint: Path, *settings: object) -> str:
    """Sixteen digits that tell runs apart: of another checkpoint, or with other `settings`."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    with checkpoint.open("rb") as file:
        while block := file.read(_AT_A_TIME):
            digest.update(block)
    return digest.hexdigest()


def key(name: str) -> int:
    """A number of 64 bits for a name, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")


class Done:
    """Names of files that have their lines, by their keys alone.

    A new file is mistaken for one of a million with a probability of 5e-14.
    """

    def __init__(self, done: Iterable[str]) -> None:
        self._keys = np.unique(np.fromiter(map(key, done), np.uint64))

    def __contains__(self, path: Path) -> bool:
        wanted = np.uint64(key(str(path)))
        place = int(np.searchsorted(self._keys, wanted))
        return place < len(self._keys) and bool(self._keys[place] == wanted)


def part_of(out: Path, rank: int) -> Path:
    """The file for the lines of a process."""
    return out if rank == 0 else out.with_name(f"{out.stem}.{rank}{out.suffix}")


def parts(out: Path) -> dict[int, Path]:
    """The files for lines that there are, by the number of their process."""
    pattern = f"{glob.escape(out.stem)}.*{glob.escape(out.suffix)}"
    found = {out.name: 0, **{path.name: _rank(path, out) for path in out.parent.glob(pattern)}}
    return {
        rank: out.with_name(name) for name, rank in found.items() if rank is not None and out.with_name(name).exists()
    }


def _rank(path: Path, out: Path) -> int | None:
    middle = path.name[len(out.stem) + 1 :].removesuffix(out.suffix)
    return int(middle) if middle.isdecimal() and part_of(out, int(middle)) == path else None


def names(part: Path, run: str) -> Iterator[str]:
    """The files that whole lines of `part` tell of; raise `ValueError` where it holds anything else."""
    begin = f'{{"run": "{run}"'.encode()
    with part.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                if line[: len(begin)] != begin[: len(line)]:
                    raise _unexpected(part, number)
                return
            try:
                told = json.loads(line)
                found, name = str(told["run"]), str(told["file"])
            except (ValueError, TypeError, KeyError):
                raise _unexpected(part, number) from None
            if found != run:
                raise ValueError(
                    f"json-lines: expected lines of this checkpoint with these settings in {part}, got others: "
                    "write to another file"
                )
            yield name


def _unexpected(part: Path, number: int) -> ValueError:
    return ValueError(
        f"json-lines: expected a new file or lines of septr-fast predict in {part}, got another line {number}"
    )


def cut_broken_line(part: Path) -> None:
    """Cut off a last line that was not written to its end."""
    with part.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - _AT_A_TIME)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        file.truncate(end)
