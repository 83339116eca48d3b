"""The page of versions: its table is that of the stored runs, nothing of which failed."""

from __future__ import annotations

import json

from compat.__main__ import PAGE, RECORDS, table
from compat.environments import VERSIONS


def test_the_page_shows_what_is_stored() -> None:
    assert table(json.loads(RECORDS.read_text(encoding="utf-8"))) in PAGE.read_text(encoding="utf-8")


def test_every_version_was_run_and_nothing_failed() -> None:
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    assert records.keys() >= {version.name for version in VERSIONS}
    for record in records.values():
        assert {name: part["failed"] for name, part in record["parts"].items()} == dict.fromkeys(record["parts"], 0)
        assert record["parts"]["goldens"]["passed"] > 30


def test_what_is_left_out_is_told_with_the_version_that_has_it() -> None:
    parts = {name: {"passed": 1, "skipped": 1, "failed": 0} for name in ("goldens", "tests", "transformers")}
    kernels = {"passed": 0, "skipped": 3, "failed": 0}
    record = {
        "torch": "2.5.1+cu124",
        "triton": "3.1.0",
        "python": "3.11",
        "commit": "abc",
        "left_out": [["PyTorch 2.8", "x"]],
    }
    shown = table({"2.5.1": {**record, "parts": {**parts, "kernels": kernels}}})
    assert "| 2.5.1 | 3.1.0 | 1 passed | 1 passed | 1 passed | not run | 3.11 | abc |" in shown
    assert shown.endswith("| x | PyTorch 2.8 |")
