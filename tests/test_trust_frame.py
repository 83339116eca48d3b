"""The frame of the corpus: processes, what is kept of them, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trust import page, parts, planted, runner
from trust.outcome import Outcome, Progress, silent


def records(*names: str, seconds: float = 120) -> dict[str, dict[str, Any]]:
    shown: list[int] = []

    def show(jobs: list[runner.Job]) -> None:
        shown.extend(job.tried for job in jobs)

    found = {record["part"]: record for record in runner.run(names, True, 2, seconds, show, planted.work)}
    assert set(shown) <= {0, 2}
    return found


def test_a_crash_is_a_finding_and_the_others_go_on() -> None:
    found = records("good", "crash", "another")
    assert [found[name]["wrong"] for name in ("good", "another")] == [[], []]
    assert found["good"]["figures"] == {"full": 1}
    assert found["crash"]["wrong"] == ["the process ended with status 11"]
    assert found["crash"]["tried"] == 2


def test_what_is_not_finished_in_time_is_wrong() -> None:
    found = records("hang", "hang too", "late", seconds=0.01)
    assert found.keys() == {"hang", "hang too", "late"}
    assert found["hang"]["wrong"] == ["not finished when 0 minutes were over"]
    assert found["late"]["wrong"] == ["not begun when 0 minutes were over"]


def test_an_error_in_a_part_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(full: bool, progress: Progress) -> Outcome:
        raise ArithmeticError("of the part")

    monkeypatch.setattr(parts, "load", lambda name: SimpleNamespace(WHAT="this", CANNOT="that", run=run))
    found = runner.run_part("any", True, silent)
    assert found["what"] == "this"
    assert "ArithmeticError: of the part" in found["wrong"][0]


def test_every_part_says_what_it_is() -> None:
    names = parts.names()
    assert {"accuracy", "fuzz", "isolation", "repeat"} <= set(names)
    assert not {"outcome", "page", "runner", "planted"} & set(names)
    with pytest.raises(ValueError, match=r"part: expected one of .*, got 'nothing'"):
        parts.load("nothing")


def test_page(tmp_path: Path) -> None:
    store, written = tmp_path / "trust.json", tmp_path / "trust.md"
    figures = {"places": 12345, "ratio": 1.23456, "of each": {"a | b": 2}, "rows": [{"x": "one", "y": 1}], "left": []}
    record = {"part": "second", "what": "Something.", "cannot": "The rest.", "seconds": 90.0}
    page.keep({**record, "tried": 1000, "wrong": ["a wrong case"], "figures": figures}, store, written)
    page.keep({**record, "part": "first", "tried": 7, "wrong": [], "figures": {}}, store, written)
    text = written.read_text(encoding="utf-8")
    assert "1,007 cases in 2 parts, 1 wrong." in text
    assert "- a wrong case" in text
    assert "races between" in text
    for cell in ("12,345", "1.23", "a \\| b", "| one | 1 |", "None."):
        assert cell in text, cell
    assert text.index("## first") < text.index("## second")
    assert json.loads(store.read_text(encoding="utf-8"))["first"]["stamp"]["versions"]["torch"]
    page.keep({**record, "tried": 1, "wrong": [], "figures": {}}, store, written)
    assert "8 cases in 2 parts, 0 wrong." in written.read_text(encoding="utf-8")
