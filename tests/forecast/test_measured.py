"""Measured figures go before forecasts: which of them, where they are looked for, and what the command prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from septr_fast.commands import forecast
from septr_fast.forecast import measured
from septr_fast.forecast.devices import DEVICES
from septr_fast.report.results import Result, Run, store

RESULT = Result("forward", "a case", "SepTr", "default", (128, 128), 64, "bfloat16", 0.032, 0.03, 0.04, 5)


def run(*found: Result, device: str = "NVIDIA H200", date: str = "2026-12-01", kind: str = "cuda") -> Run:
    stamp = {"device": device, "kind": kind, "commit": "0123abc", "date": date}
    return Run(stamp, "quick", "clips", {}, list(found))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"group": "training step"}, False),
        ({"model": "reference"}, False),
        ({"shape": "tiny"}, False),
        ({"batch": 1}, False),
        ({"precision": "float32"}, False),
    ],
)
def test_only_the_pass_that_is_forecast(changes: dict[str, Any], found: bool) -> None:
    figure = measured.latest([run(replace(RESULT, **changes))], DEVICES["h200"], 64, training=False)
    expected = {"seconds": 0.032, "per_second": 2000.0, "device": "NVIDIA H200", "commit": "0123abc"}
    assert figure == ({**expected, "date": "2026-12-01"} if found else None)


def test_the_last_figure_of_that_device() -> None:
    faster = replace(RESULT, seconds=0.016)
    runs = [run(RESULT), run(faster, date="2027-01-01"), run(replace(RESULT, batch=1), date="2027-02-01")]
    found = measured.latest(runs, DEVICES["h200"], 64, training=False)
    assert found is not None
    assert found["per_second"] == 4000
    assert measured.latest(runs, DEVICES["h100"], 64, training=False) is None
    assert len({device.called for device in DEVICES.values()}) == len(DEVICES)


def test_results_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(run(RESULT), tmp_path / "h200.json")
    store(run(RESULT, kind="cpu"), tmp_path / "cpu.json")
    (tmp_path / "other.json").write_text("{}")
    assert measured.at_hand([tmp_path / "h200.json", tmp_path / "cpu.json"]) == [run(RESULT)]
    with pytest.raises(ValueError, match=r"other\.json: expected results of the benchmarks"):
        measured.at_hand([tmp_path / "other.json"])
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert measured.at_hand() == [run(RESULT)]
    monkeypatch.setattr(measured, "RESULTS", tmp_path / "nowhere")
    assert measured.at_hand() == []


def test_it_is_printed_before_the_forecast() -> None:
    figures = {"seconds": 0.032, "per_second": 2000.0, "device": "NVIDIA H200", "commit": "0123abc"}
    one = {"training": False, "batch": 64, "device": "H200", "lines": [], "gpu_seconds": 0.028, "host_seconds": None}
    one |= {
        "precision": "bfloat16",
        "backend": "triton",
        "per_second": 2285.7,
        "per_second_range": (1851, 2720),
        "measured": figures,
        "off_by": -0.125,
    }
    first, second = forecast._table(one).splitlines()[:2]
    assert first.startswith("MEASURED: forward pass, batch 64, bfloat16, NVIDIA H200, commit 0123abc: 32.0 ms, 2,000 ")
    assert first.endswith("the forecast below is off by -12%")
    assert second.startswith("FORECAST, not measured: forward pass")
    assert not forecast._measured({**one, "measured": None})
    trained = forecast._measured({**one, "training": True})
    assert trained[0].startswith("MEASURED: training step and optimizer, batch 64")


def test_a_file_that_holds_no_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"format": 1}))
    options = {"device": ["h100"], "batch": [64], "training": False, "as_json": False, "published": True}
    assert forecast.run(**options, cache=tmp_path, jobs=1, measured=[file]) == 2
    assert "other.json: expected results of the benchmarks: not results of format 2" in capfd.readouterr().err
