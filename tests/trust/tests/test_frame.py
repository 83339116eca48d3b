"""The frame of the corpus: processes, what is kept of them, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import planted_parts
from support.runs.report_runs import rows
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


def paths(folder: Path) -> page.Paths:
    """Of files in `folder`."""
    return page.Paths(folder / "trust.records", folder / "trust.md", folder / "tables", folder)


RECORD: dict[str, Any] = {
    "part": "first",
    "what": "Something.",
    "cannot": "The rest.",
    "seconds": 90.0,
    "tried": 7,
    "wrong": [],
    "figures": {},
}


def test_page(tmp_path: Path) -> None:
    kept = paths(tmp_path)
    figures = {"places": 12345, "ratio": 1.23456, "of Each": {"a | b": 2}, "rows": [{"x": "one", "y": 1}], "left": []}
    page.keep({**RECORD, "part": "second", "tried": 1000, "wrong": ["a wrong case"], "figures": figures}, kept)
    page.keep(RECORD, kept)
    text = kept.page.read_text(encoding="utf-8")
    assert "1,007 cases in 2 parts, 1 wrong." in text
    assert "Wrong: a wrong case." in text
    assert "Something. Not found by it: The rest." in text
    assert "What none of this finds" in text
    assert "places: 12,345; ratio: 1.23.\n" in text
    assert "Tables: [of-each](tables/second-of-each.csv), [rows](tables/second-rows.csv)." in text
    assert "left" not in text
    assert text.index("## first") < text.index("## second")
    assert json.loads(kept.records.read_text(encoding="utf-8"))["first"]["stamp"]["versions"]["torch"]
    page.keep({**RECORD, "part": "second", "tried": 1, "stamp": {**CHECK["stamp"], "commit": "abc"}}, kept)
    again = kept.page.read_text(encoding="utf-8")
    assert "8 cases in 2 parts, 0 wrong." in again
    assert rows(next(block for block in again.split("\n\n") if block.startswith("| part")))[1] == {
        "part": "[second](#second)",
        "tried": "1",
        "wrong": "0",
        "minutes": "1.5",
        "at commit": "abc",
        "on": "2026-11-20",
    }
    assert again.count("\nRun on ") == 2


def test_long_figures_are_tables_beside_the_page(tmp_path: Path) -> None:
    kept = paths(tmp_path)
    figures = {"of each": {"a, b": 2, "c": 1.5}, "rows": [{"x": "one", "y": 1}], "names": ["left", "right"]}
    page.keep({**RECORD, "figures": figures}, kept)
    written = {file.name: file.read_text(encoding="utf-8") for file in kept.tables.iterdir()}
    assert written == {
        "first-of-each.csv": 'of,value\n"a, b",2\nc,1.5\n',
        "first-rows.csv": "x,y\none,1\n",
        "first-names.csv": "value\nleft\nright\n",
    }
    (kept.tables / "notes.txt").write_text("kept", encoding="utf-8")
    page.keep({**RECORD, "figures": {"rows": [{"x": "two"}]}}, kept)
    assert {file.name for file in kept.tables.iterdir()} == {"first-rows.csv", "notes.txt"}
    assert (kept.tables / "first-rows.csv").read_text(encoding="utf-8") == "x\ntwo\n"


def test_page_shows_what_is_kept(tmp_path: Path) -> None:
    shown = page.PATHS
    copies = page.Paths(shown.records, tmp_path / "trust.md", tmp_path / "trust", shown.results)
    page.write(copies)
    words = "update it: python -m trust --page"
    assert copies.page.read_text(encoding="utf-8") == shown.page.read_text(encoding="utf-8"), words
    written, kept = (
        {one.name: one.read_bytes() for one in folder.glob("*.csv")} for folder in (copies.tables, shown.tables)
    )
    assert written == kept, words
    assert {record["part"] for record in page.stored()} == set(registry.names())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two parts, "a" and "b", of sources "1", with their records; the names of those that the command starts."""
    kept = paths(tmp_path)
    names: list[str] = []

    def run(chosen: Sequence[str], full: bool, *_: Any) -> Iterator[dict[str, Any]]:
        names.extend(chosen)
        yield from ({**RECORD, "part": name, "wrong": ["wrong"] * (name == "b")} for name in chosen)

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(registry, "names", lambda: ["a", "b"])
    monkeypatch.setattr(registry, "sources", lambda name: "1")
    stored, keep = page.stored, page.keep
    monkeypatch.setattr(page, "stored", lambda given=kept: stored(given))
    monkeypatch.setattr(page, "keep", lambda record: keep(record, kept))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("a", "b"):
        page.keep({**RECORD, "part": name, "sources": "1"})
    return names


def test_what_has_not_changed_is_not_run(started: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    commit = page.stored()[0]["stamp"]["commit"]
    assert command.main([]) == 0
    assert started == []
    assert f"a: unchanged since {commit}\nb: unchanged since {commit}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "run"),
    [(["--all"], ["a", "b"]), (["--short"], ["a", "b"]), (["--part", "a"], ["a"]), (["--page"], [])],
)
def test_what_is_asked_for_runs(
    arguments: list[str], run: list[str], started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "write", lambda *_: None)
    assert command.main(arguments) == int("b" in run)
    assert started == run


@pytest.mark.parametrize(
    "changed", [{"sources": "0"}, {"sources": None}, {"wrong": ["a case"]}], ids=["of others", "of none", "wrong"]
)
def test_what_is_of_other_sources_or_wrong_is_due_again(changed: dict[str, Any], started: list[str]) -> None:
    page.keep({**RECORD, "part": "a", "sources": "1", **changed})
    assert registry.out_of_date(page.stored()) == ["a"]
    assert command.main([]) == 0
    assert started == ["a"]
    assert registry.out_of_date(page.stored()) == []


def test_what_came_out_wrong_stays_due(started: list[str]) -> None:
    page.keep({**RECORD, "part": "b", "sources": "0"})
    assert command.main([]) == 1
    assert registry.out_of_date(page.stored()) == ["b"]
    assert registry.out_of_date([]) == ["a", "b"]


def test_parts_depend_on_what_they_import_and_read() -> None:
    assert len({registry.sources(name) for name in registry.names()}) == len(registry.names())
    assert registry.PROGRAMS.keys() | registry.FILES.keys() <= set(registry.names())
    for name, patterns in registry.FILES.items():
        assert all(any(registry.ROOT.glob(pattern)) for pattern in patterns), name


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
    kept = paths(tmp_path)
    page.keep(RECORD, kept)
    assert "is untested here" in kept.page.read_text(encoding="utf-8")
    later = {**CHECK["stamp"], "device": "NVIDIA Imaginary 9001", "date": "2026-11-21T10:00:00+00:00"}
    (tmp_path / "a later one.json").write_text(json.dumps({**CHECK, "stamp": later}), encoding="utf-8")
    (tmp_path / "check.json").write_text(json.dumps(CHECK), encoding="utf-8")
    page.keep(RECORD, kept)
    text = kept.page.read_text(encoding="utf-8")
    assert "is untested here" not in text
    assert text.index("### NVIDIA Imaginary 9000") < text.index("### NVIDIA Imaginary 9001") < text.index("## first")
    assert text.count("### NVIDIA") == 2
    for shown in (
        "NVIDIA Imaginary 9000, 16 cores; torch 2.13.0, triton 3.6.0; 2026-11-20; commit 0123456789ab.",
        "| runs of 2 passes, bit for bit | 2,000 | 2 |",
        "- 2 of 1000 runs differ: a pass",
        "- graphs: RuntimeError: of the graphs",
        "- sanitize: compute-sanitizer is not installed",
    ):
        assert shown in " ".join(text.split()), shown
