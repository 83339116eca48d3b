"""Seconds of launches and operations from what they ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from septr_fast.kernels.launch import Config, Launch

from septr_fast.forecast import times
from septr_fast.forecast.devices import COPIED, DEVICES
from septr_fast.forecast.steps import Operation
from septr_fast.forecast.times import Fit
from septr_fast.forecast.work import Work

H100 = DEVICES["h100"]
ALL_HIDDEN = Fit(exposed=0.0, cache_bytes=20.0)
WORK = Work(
    issued=4e4,
    whole=0,
    plain=0,
    special=0,
    shared=5e3,
    shared_by_products=0,
    requests=0,
    moved=0,
    copied=0,
    products=0,
    old=0,
    resident=2,
)


def launched(programs: int, *, flops: int = 0, values: int = 16) -> Launch:
    x = torch.empty(values, dtype=torch.bfloat16, device="meta")
    return Launch("kernel", None, programs, {"x_ptr": x}, Config({}, 4), flops, flops)


def seconds(programs: int, work: Work = WORK, exposed: float = 0.0, **options: int) -> float:
    fit = ALL_HIDDEN._replace(exposed=exposed)
    return times.of_kernel(launched(programs, **options), work, H100, fit).seconds - times.BETWEEN


def test_programs_run_in_rounds_of_what_is_resident() -> None:
    one = seconds(132 * 2)
    assert one == pytest.approx((2 * 1e4 + times.LATENCY) / H100.clock)
    assert seconds(132 * 2 + 1) == pytest.approx(2 * one)
    assert seconds(132) == pytest.approx((1e4 + times.LATENCY) / H100.clock)


def test_other_units_are_exposed_the_less_the_more_programs_are_resident() -> None:
    alone = replace(WORK, resident=1)
    added = (seconds(132, alone, exposed=0.4) - seconds(132, alone)) * H100.clock
    assert added == pytest.approx(0.4 * 5e3)
    added = (seconds(264, WORK, exposed=0.4) - seconds(264)) * H100.clock
    assert added == pytest.approx(0.4 * 5e3)


def test_the_busiest_unit_is_named() -> None:
    rate = H100.tensor * H100.products
    cost = times.of_kernel(launched(132, flops=132 * int(2e4 * rate)), WORK, H100, ALL_HIDDEN)
    assert cost.bound == "tensor cores"
    assert cost.seconds == pytest.approx((2e4 + times.LATENCY) / H100.clock + times.BETWEEN, rel=1e-3)
    large = times.of_kernel(launched(1, values=10**9), WORK, H100, ALL_HIDDEN)
    assert large.bound == "memory"
    assert large.seconds == pytest.approx(2e9 / H100.memory / COPIED, rel=1e-2)


def test_small_operands_come_from_the_cache() -> None:
    small, large = (Operation("add", 0, 1.0, moved) for moved in (H100.cache // 4, H100.cache * 4))
    rates = [one.moved / (times.of_operation(one, H100, ALL_HIDDEN).seconds - times.BETWEEN) for one in (small, large)]
    cached = ALL_HIDDEN.cache_bytes * H100.multiprocessors * H100.clock
    assert rates == pytest.approx([cached, H100.memory * COPIED])


def test_exact_products_take_no_tensor_cores() -> None:
    fast, tf32, exact = (
        times.of_operation(Operation("mm", 10**12, share, 1), H100, ALL_HIDDEN).seconds for share in (1.0, 0.5, 0.0)
    )
    assert tf32 / fast == pytest.approx(2, rel=1e-2)
    assert exact / fast == pytest.approx(4096 / 256, rel=1e-2)


def test_lines_add_up_by_name() -> None:
    found = [launched(264), Operation("mm", 10**9, 1.0, 1), launched(132)]
    lines = times.lines(found, {0: WORK, 2: WORK}, H100, ALL_HIDDEN)
    assert {(line.name, line.count) for line in lines} == {("kernel", 2), ("mm", 1)}
    assert times.total(lines) == pytest.approx(
        sum(times.of_kernel(found[place], WORK, H100, ALL_HIDDEN).seconds for place in (0, 2))  # type: ignore[arg-type]
        + times.of_operation(found[1], H100, ALL_HIDDEN).seconds  # type: ignore[arg-type]
    )
    assert lines == sorted(lines, key=lambda line: -line.seconds)
