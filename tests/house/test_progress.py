"""How far something is: lines for logs and pipes, tqdm on a terminal, and neither where nothing shall be shown."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from septr_fast import progress
from septr_fast.progress import Bar, Lines, start, track

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("progress", sys.argv[1])
progress = importlib.util.module_from_spec(spec)
{before}
spec.loader.exec_module(progress)
with progress.start(3, "clips", "reading") as shown:
    for _ in range(3):
        shown.say("words")
        shown.advance()
    shown.write("a line that stays")
"""
NO_TQDM = "sys.modules['tqdm'] = None"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_at_intervals_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with start(100, "clips", "reading", stream=stream, clock=clock) as shown:
        assert isinstance(shown, Lines)
        for _ in range(100):
            clock.now += 1
            shown.advance()
    assert stream.getvalue().splitlines() == [
        "reading: 30 of 100 clips, 30 s",
        "reading: 60 of 100 clips, 60 s",
        "reading: 90 of 100 clips, 90 s",
        "reading: 100 of 100 clips, 100 s",
    ]


def test_lines_say_what_is_known() -> None:
    stream, clock = io.StringIO(), Clock()
    with start(None, "steps", done=5, stream=stream, clock=clock) as shown:
        shown.say("loss 0.5")
        clock.now += 29.9
        shown.advance(2)
        assert stream.getvalue() == ""
        clock.now += 0.1
        shown.advance()
        shown.write("stays")
        shown.say("")
    assert stream.getvalue().splitlines() == ["8 steps, 30 s; loss 0.5", "stays"]


def test_what_ends_early_has_a_last_line() -> None:
    stream = io.StringIO()
    shown = start(4, "clips", stream=stream, clock=Clock())
    shown.advance()
    with pytest.raises(ArithmeticError), shown:
        raise ArithmeticError
    assert stream.getvalue() == "1 of 4 clips, 0 s\n"
    with start(0, "clips", stream=stream):
        pass
    assert stream.getvalue() == "1 of 4 clips, 0 s\n"


def test_what_is_not_shown_writes_nothing() -> None:
    stream = Terminal()
    with start(1, "clips", shown=False, stream=stream) as shown:
        assert not shown.shown
        shown.say("words")
        shown.advance()
        shown.write("line")
    assert stream.getvalue() == ""


def test_items_are_tracked(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], "clips", "reading")) == [1, 2]
    assert list(track(iter([3]), "clips", total=1)) == [3]
    assert list(track(iter([4]), "clips")) == [4]
    assert list(track([5], "clips", shown=False)) == [5]
    assert capsys.readouterr() == ("", "reading: 2 of 2 clips, 0 s\n1 of 1 clips, 0 s\n1 clips, 0 s\n")


def test_a_terminal_gets_a_bar() -> None:
    pytest.importorskip("tqdm")
    stream = Terminal()
    with start(2, "clips", "reading", done=1, stream=stream) as shown:
        assert isinstance(shown, Bar)
        assert shown.shown
        shown.say("loss 0.5")
        shown.write("a line that stays")
        shown.advance()
    text = stream.getvalue()
    assert "a line that stays\n" in text
    assert "reading: 100%" in text
    assert "2/2" in text
    assert "loss 0.5" in text
    assert " clips" in text


def test_a_terminal_without_tqdm_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    with start(1, "clips", stream=stream) as shown:
        shown.advance()
    assert stream.getvalue() == "1 of 1 clips, 0 s\n"


@pytest.mark.parametrize("before", ["", NO_TQDM], ids=["tqdm", "without"])
def test_a_pipe_gets_lines_alone(before: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(before=before), progress.__file__]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr == b"reading: 3 of 3 clips, 0 s; words\na line that stays\n"


def test_a_real_terminal_gets_a_bar() -> None:
    pytest.importorskip("tqdm")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-c", SCRIPT.format(before=""), progress.__file__]
    done = subprocess.run(command, stderr=slave, stdout=subprocess.PIPE, check=True)
    os.close(slave)
    text = os.read(master, 65536).decode()
    os.close(master)
    assert done.stdout == b""
    assert "\r" in text
    assert "3/3" in text


def test_bars_are_made_here_alone() -> None:
    files = [
        file for room in ("septr_fast", "benchmarks", "examples", "tests/trust") for file in (ROOT / room).rglob("*.py")
    ]
    found = [file.relative_to(ROOT).as_posix() for file in files if "import tqdm" in file.read_text(encoding="utf-8")]
    assert found == ["septr_fast/progress.py"]
