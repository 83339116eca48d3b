"""The frame of the corpus: processes, what is kept of them, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import planted_parts
from trust import __main__ as command
from trust import page, registry, runner
from trust.outcome import Outcome, Progress, silent


def records(*names: str, seconds: float = 120) -> dict[str, dict[str, Any]]:
    shown: list[int] = []

    def show(jobs: list[runner.Job]) -> None:
        shown.extend(job.tried for job in jobs)

    found = {record["part"]: record for record in runner.run(names, True, 2, seconds, show, planted_parts.work)}
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

    monkeypatch.setattr(registry, "load", lambda name: SimpleNamespace(WHAT="this", CANNOT="that", run=run))
    found = runner.run_part("any", True, silent)
    assert found["what"] == "this"
    assert "ArithmeticError: of the part" in found["wrong"][0]


def test_every_part_says_what_it_is() -> None:
    names = registry.names()
    assert {"accuracy", "fuzz", "isolation", "repeat"} <= set(names)
    assert not {"outcome", "page", "runner", "planted"} & set(names)
    with pytest.raises(ValueError, match=r"part: expected one of .*, got 'nothing'"):
        registry.load("nothing")


def test_parts_that_take_long_begin_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(page, "stored", lambda: kept)
    assert command.longest_first(["a", "b"]) == ["a", "b"]
    kept += [{"part": "a", "seconds": 3.0}, {"part": "b", "seconds": 5.0}]
    assert command.longest_first(["a", "b", "new"]) == ["new", "b", "a"]


def paths(folder: Path) -> page.Paths:
    """Of files in `folder`, with a README that has the markers."""
    readme = folder / "README.md"
    readme.write_text(f"before\n{page.START}old\n{page.END}\nafter\n", encoding="utf-8")
    return page.Paths(folder / "trust.records", folder / "trust.md", readme, folder)


def test_page(tmp_path: Path) -> None:
    kept = paths(tmp_path)
    figures = {"places": 12345, "ratio": 1.23456, "of each": {"a | b": 2}, "rows": [{"x": "one", "y": 1}], "left": []}
    record = {"part": "second", "what": "Something.", "cannot": "The rest.", "seconds": 90.0}
    page.keep({**record, "tried": 1000, "wrong": ["a wrong case"], "figures": figures}, kept)
    page.keep({**record, "part": "first", "tried": 7, "wrong": [], "figures": {}}, kept)
    text = kept.page.read_text(encoding="utf-8")
    assert "1,007 cases in 2 parts, 1 wrong." in text
    assert "- a wrong case" in text
    assert "races between" in text
    for cell in ("12,345", "1.23", "a \\| b", "| one | 1 |", "None."):
        assert cell in text, cell
    assert text.index("## first") < text.index("## second")
    assert json.loads(kept.records.read_text(encoding="utf-8"))["first"]["stamp"]["versions"]["torch"]
    page.keep({**record, "tried": 1, "wrong": [], "figures": {}, "stamp": {**CHECK["stamp"], "commit": "abc"}}, kept)
    assert "commit abc;" in kept.page.read_text(encoding="utf-8")
    assert "8 cases in 2 parts, 0 wrong." in kept.page.read_text(encoding="utf-8")
    readme = kept.readme.read_text(encoding="utf-8")
    assert readme.startswith(f"before\n{page.START}8 cases in 2 parts, 0 wrong.\n\n| part ")
    assert readme.endswith(f"|\n{page.END}\nafter\n")
    assert "| first  |" in readme
    kept.readme.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="readme: expected the markers"):
        page.write(kept)


def test_pages_show_what_is_kept(tmp_path: Path) -> None:
    shown = {path: path.read_text(encoding="utf-8") for path in (page.PATHS.page, page.PATHS.readme)}
    copies = page.Paths(page.PATHS.records, tmp_path / "trust.md", tmp_path / "README.md", page.PATHS.results)
    copies.readme.write_text(shown[page.PATHS.readme], encoding="utf-8")
    page.write(copies)
    for path, text in shown.items():
        assert (tmp_path / path.name).read_text(encoding="utf-8") == text, "update it: python -m trust --page"
    assert {record["part"] for record in page.stored()} == set(registry.names())


CHECK = {
    "stage": "check",
    "tiny": False,
    "stamp": {
        "device": "NVIDIA Imaginary 9000",
        "kind": "cuda",
        "cores": 16,
        "versions": {"torch": "2.13.0", "triton": "3.6.0", "einops": None},
        "commit": "0123456789ab",
        "date": "2026-11-20T10:00:00+00:00",
    },
    "results": {
        "repeat": [{"pass": "a pass", "runs": 1000, "different": 2}, {"pass": "another", "runs": 1000, "different": 0}],
        "stream": True,
        "errors": {"graphs": "Traceback\nRuntimeError: of the graphs\n"},
    },
    "left_out": ["sanitize: compute-sanitizer is not installed"],
}


def test_page_shows_what_was_checked_on_a_gpu(tmp_path: Path) -> None:
    """In place of the sentence that nothing was; rehearsals, other stages and broken files are passed over."""
    others = {
        "rehearsed": {**CHECK, "tiny": True},
        "of a processor": {**CHECK, "stamp": {**CHECK["stamp"], "kind": "cpu"}},
        "bench": {**CHECK, "stage": "bench"},
        "list": [CHECK],
    }
    for name, content in others.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    record = {"part": "first", "seconds": 90.0, "tried": 1, "wrong": [], "figures": {}}
    kept = paths(tmp_path)
    page.keep(record, kept)
    assert "are untested here" in kept.page.read_text(encoding="utf-8")
    later = {**CHECK["stamp"], "device": "NVIDIA Imaginary 9001", "date": "2026-11-21T10:00:00+00:00"}
    (tmp_path / "a later one.json").write_text(json.dumps({**CHECK, "stamp": later}), encoding="utf-8")
    (tmp_path / "check.json").write_text(json.dumps(CHECK), encoding="utf-8")
    page.keep(record, kept)
    text = kept.page.read_text(encoding="utf-8")
    assert "are untested here" not in text
    assert text.index("### NVIDIA Imaginary 9000") < text.index("### NVIDIA Imaginary 9001") < text.index("## first")
    assert text.count("### NVIDIA") == 2
    for shown in (
        "torch 2.13.0, triton 3.6.0; commit 0123456789ab; 2026-11-20.",
        "| runs of 2 passes, bit for bit | 2,000 | 2 |",
        "- 2 of 1000 runs differ: a pass",
        "- graphs: RuntimeError: of the graphs",
        "- sanitize: compute-sanitizer is not installed",
    ):
        assert shown in " ".join(text.split()), shown
