"""What more cores should give: reckoned by hand for small cases, and the page of what is stored."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.measuring import scaling
from benchmarks.measuring.scaling import Measured, Pass
from septr_fast import SepTr
from septr_fast.passes.torch import cores

MIB = 1 << 20
ONE = Pass(flops=100, rows=(1, 128), bytes_per_row=MIB, operations=10.0, bytes_moved=0.0)
"""128 rows of 1 MiB: for one core or two chunks of 6 rows at most."""


def test_chunks_are_those_that_the_code_cuts() -> None:
    assert scaling.chunk_count(ONE, 1) == 22
    assert scaling.chunk_count(ONE, 2) == 22
    assert scaling.chunk_count(ONE, 16) == scaling.chunk_count(ONE, 128) == 128


def test_one_core_is_as_measured() -> None:
    row = scaling.reckoned([ONE, ONE], Measured(one=1.0, two=0.5, start=1e-3, copy=1e9), 1)
    assert row["seconds"] == pytest.approx(1.0)
    assert (row["chunks"], row["bound"]) == (44, "products")


def test_the_last_round_of_chunks_counts_whole() -> None:
    found = scaling.reckoned([ONE], Measured(one=1.0, two=0.5, start=0.0, copy=1e9), 4)
    chunks = scaling.chunk_count(ONE, 4)
    assert found["seconds"] == pytest.approx(-(-chunks // 4) / chunks)


def test_starts_and_memory_rule_where_they_are_longest() -> None:
    slow_starts = scaling.reckoned([ONE], Measured(one=1.0, two=0.5, start=1e-3, copy=1e9), 128)
    assert slow_starts["bound"] == "starts"
    assert slow_starts["seconds"] == pytest.approx(128 * 10 * 1e-3)
    moving = Pass(**{**vars(ONE), "bytes_moved": 16e9})
    slow_memory = scaling.reckoned([moving], Measured(one=1.0, two=0.5, start=0.0, copy=1e9), 64)
    assert (slow_memory["bound"], slow_memory["seconds"]) == ("memory", pytest.approx(1.0))


def test_every_pass_of_a_model_is_counted(one_thread: None) -> None:
    model, x = SepTr(input_size=(64, 64), dim=64, dim_head=64, mlp_dim=64, depth=2).eval(), torch.randn(1, 1, 64, 64)

    def call() -> None:
        with torch.no_grad():
            model(x)

    found = scaling.passes_of(model, x, call)
    assert [one.flops for one in found] == [step.flops for step in model.plan().steps]
    assert all(one.operations > 1 and one.bytes_moved > 0 for one in found)


def test_the_page_shows_what_is_stored() -> None:
    content = json.loads((scaling.ROOT / scaling.RECORDS).read_text(encoding="utf-8"))
    assert (scaling.ROOT / scaling.PAGE).read_text(encoding="utf-8") == scaling.page(content)
    assert [run["batch"] for run in content["runs"]] == list(scaling.BATCHES)
    assert max(scaling.CORES) > cores.MOST
