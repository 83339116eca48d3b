"""Published figures and their forecasts: what is fitted to them, and what is kept of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measuring import forecasts as page
from benchmarks.suite import evidence
from septr_fast.forecast import forecasts, known
from septr_fast.forecast.work import Work

ROOT = Path(__file__).resolve().parents[2]
LEAST = 6
"""Figures that a forecast has to be held against."""


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The kept forecasts, which may be older than the sources."""
    return json.loads((ROOT / page.RECORDS).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def works(stored: dict[str, Any]) -> list[dict[int, Work]]:
    """What was counted of the kernels of published figures."""
    return [{int(key): Work(**work) for key, work in one["works"].items()} for one in stored["published"]]


def test_figures_name_gpu_and_source(stored: dict[str, Any]) -> None:
    figures = known.published()
    assert len(figures) >= LEAST
    assert [one["name"] for one in stored["published"]] == [one.name for one in figures]
    assert all(one.figure > 0 and one.source and one.candidates for one in figures)
    assert len({one.device for one in figures}) > 2


def test_the_fit_is_the_best_and_its_error_is_told(works: list[dict[int, Work]], stored: dict[str, Any]) -> None:
    figures = known.published()
    assert known.fitted(figures, works) == forecasts.FIT
    assert pytest.approx(known.error_when_left_out(figures, works), abs=0.005) == forecasts.ERROR
    checked = known.check(figures, works, forecasts.FIT)
    assert [one.forecast for one in checked] == pytest.approx([one["forecast"] for one in stored["published"]])
    assert known.mean_error(checked) <= forecasts.ERROR


def test_a_kernel_that_does_not_fit_a_multiprocessor_is_passed_over(works: list[dict[int, Work]]) -> None:
    one, counted = known.published()[0], works[0]
    (fastest,) = known.check([one], [counted], forecasts.FIT)
    apart = [
        known.check([one], [{**dict.fromkeys(counted, replace(counted[0], resident=0)), place: work}], forecasts.FIT)
        for place, work in counted.items()
    ]
    forecast = [checked.forecast for (checked,) in apart]
    assert max(forecast) == fastest.forecast
    assert len(set(forecast)) > 1


def test_what_is_counted_is_what_compiling_gives(works: list[dict[int, Work]]) -> None:
    program = (
        "import json, sys; from dataclasses import asdict; from septr_fast.forecast import known, work;"
        "from septr_fast.tuning import compiled; one = known.published()[4].candidates[0];\n"
        "with compiled.driver(): sys.stdout.write(json.dumps(asdict(work.of_launch(one, 86))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Work(**json.loads(done.stdout)) == works[4][0]


def test_forecasts_are_called_that_and_bear_their_error(stored: dict[str, Any]) -> None:
    text = (ROOT / page.PAGE).read_text(encoding="utf-8")
    assert text == page.page(stored)
    assert "No forecast on this page was measured\non a GPU" in text
    for one in stored["forecasts"]:
        low, high = one["per_second_range"]
        assert low == pytest.approx(one["per_second"] * (1 - stored["error"]))
        assert high == pytest.approx(one["per_second"] * (1 + stored["error"]))
        assert one["seconds"] == max(one["gpu_seconds"], one["host_seconds"])


def test_kept_forecasts_are_told_to_be_out_of_date_where_kernels_changed() -> None:
    assert page.RECORDS.as_posix() in evidence.STORED
