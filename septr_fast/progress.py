"""How far something is, on standard error: tqdm's bar on a terminal, where that is installed, otherwise lines.

A line comes every `SECONDS` at most, and one at the end, so that logs and pipes hold no bars.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TextIO, TypeVar

SECONDS = 30.0
"""Between two lines, at least."""
Item = TypeVar("Item")


class Progress:
    """What `start` returns; this one shows nothing.

    Attributes:
        shown: whether anything is shown, so that it is worth to find out what to say.
    """

    shown = False

    def advance(self, count: int = 1) -> None:
        """So many more are done."""

    def say(self, words: str) -> None:
        """What happens next, or how it goes; it is shown with the number."""

    def write(self, line: str) -> None:
        """A line that stays."""

    def close(self) -> None:
        """Nothing more comes."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Lines(Progress):
    """Lines for a log: "reading: 120 of 400 clips, 35 s"."""

    shown = True

    def __init__(
        self, total: int | None, unit: str, what: str, done: int, stream: TextIO, clock: Callable[[], float]
    ) -> None:
        self._total, self._unit, self._what, self._done = total, unit, what, done
        self._stream, self._clock, self._words = stream, clock, ""
        self._begun = self._told = clock()
        self._shown: int | None = None

    def advance(self, count: int = 1) -> None:
        """So many more are done; a line where the last one is long ago or all is done."""
        self._done += count
        if self._clock() - self._told >= SECONDS or self._done == self._total:
            self._tell()

    def say(self, words: str) -> None:
        """What the next line says besides."""
        self._words = words

    def write(self, line: str) -> None:
        """A line that stays."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """The last line, where it has not been told already."""
        if self._shown != self._done and self._total != 0:
            self._tell()

    def _tell(self) -> None:
        self._told, self._shown = self._clock(), self._done
        of = "" if self._total is None else f" of {self._total}"
        words = f"; {self._words}" if self._words else ""
        begin = f"{self._what}: " if self._what else ""
        self.write(f"{begin}{self._done}{of} {self._unit}, {self._told - self._begun:.0f} s{words}")


class Bar(Progress):
    """tqdm's bar, for a terminal."""

    shown = True

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._bar.update(count)

    def say(self, words: str) -> None:
        """What stands behind the bar."""
        self._bar.set_postfix_str(words)

    def write(self, line: str) -> None:
        """A line above the bar."""
        self._bar.write(line, self._bar.fp)

    def close(self) -> None:
        """Leave the bar where it is."""
        self._bar.close()


def start(
    total: int | None,
    unit: str,
    what: str = "",
    *,
    done: int = 0,
    shown: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Begin to show how many of `total` are done.

    Args:
        total: how many there are; None where nobody knows.
        unit: of what, as a plural.
        what: is done with them.
        done: of these, before.
        shown: False shows nothing.
        stream: by default standard error as it is now.
        clock: seconds, for lines.
    """
    if not shown:
        return Progress()
    where = sys.stderr if stream is None else stream
    tqdm = _tqdm() if where.isatty() else None
    if tqdm is None:
        return Lines(total, unit, what, done, where, clock)
    words = what or None
    return Bar(tqdm(total=total, initial=done, unit=f" {unit}", desc=words, file=where, dynamic_ncols=True))


def track(
    items: Iterable[Item], unit: str, what: str = "", *, total: int | None = None, shown: bool = True
) -> Iterator[Item]:
    """Yield `items` and show how many of them are done; arguments as of `start`, `total` by default their number."""
    known = len(items) if total is None and isinstance(items, Sized) else total
    with start(known, unit, what, shown=shown) as progress:
        for item in items:
            yield item
            progress.advance()


def _tqdm() -> Any:
    """The class of bars; None where the package is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
