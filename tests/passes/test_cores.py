"""Chunks that cores share: the same results, settings that stay, and whatever befalls one of the threads."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.suite.shapes import SMALL
from septr_fast.passes.torch import chunks, cores
from septr_fast.passes.torch.chunks import CPU_CHUNK_BYTES

FORMULATIONS = [None, "direct", "merged"]
CONFIG = {**SMALL["wide heads"], "input_size": (6, 9), "channels": 3}

pytestmark = pytest.mark.skipif(
    not torch.backends.openmp.is_available(), reason="this PyTorch has no OpenMP: chunks are not shared"
)


BUDGETS = {"CPU_CHUNK_BYTES": 6 << 20, "CPU_TRAINING_CHUNK_BYTES": 12 << 20}


@pytest.fixture(autouse=True, params=[2, 3], ids=["two threads", "three threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads of PyTorch, and chunks of one row that they share."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    for name in ("LEAST_SHARED_BYTES", "LEAST_ALONE_BYTES", "LEAST_CHUNK_BYTES", *BUDGETS):
        monkeypatch.setattr(chunks, name, 1)
    monkeypatch.setattr(cores, "_quota", lambda: cores.MOST)
    assert cores.why_not() is None
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that took items, one after another."""
    names: list[str] = []
    take = cores._Work.take

    def noting(work: Any) -> None:
        names.append(threading.current_thread().name)
        take(work)

    monkeypatch.setattr(cores._Work, "take", noting)
    return names


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ["wide heads", "uneven pooling", "single full head"])
def test_models_and_gradients(name: str, formulation: str | None, helped: list[str]) -> None:
    expected, model = pair(SMALL[name], formulation=formulation)
    x = spectrograms(SMALL[name], batch=3)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10
    with torch.no_grad():
        assert relative_error(model(x), expected(x)) < 1e-12
    assert "MainThread" in helped


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_training_step_has_the_same_bits_again(recompute: bool, helped: list[str]) -> None:
    expected, model = pair(CONFIG, torch.float32, formulation="merged")
    model.set_grad_checkpointing(recompute)
    x = spectrograms(CONFIG, 3, torch.float32)
    wanted = gradients(expected, x)
    first, *others = [gradients(model, x) for _ in range(5)]
    assert worst(first, wanted)[0] < 1e-4
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    assert helped


@pytest.mark.parametrize("axis", ["height", "width"])
def test_padded_batches(axis: str, helped: list[str]) -> None:
    expected, model = pair(CONFIG)
    size = CONFIG["input_size"][axis == "width"]
    x, lengths = spectrograms(CONFIG, batch=3), torch.tensor([size, 2, size - 1])
    found = model(x, lengths, lengths_axis=axis)
    with torch.no_grad():
        assert relative_error(model(x, lengths, lengths_axis=axis), found) < 1e-12
    assert helped
    assert relative_error(found[:1], expected(x[:1])) < 1e-12


@pytest.mark.parametrize("way", ["no gradients", "inference mode", "autocast"])
def test_threads_are_in_the_state_of_the_caller(way: str, helped: list[str]) -> None:
    expected, model = pair(CONFIG, torch.float32)
    x = spectrograms(CONFIG, 3, torch.float32)
    inference = torch.inference_mode() if way == "inference mode" else torch.no_grad()
    with inference, torch.autocast("cpu", torch.bfloat16) if way == "autocast" else nullcontext():
        logits, states = model(x), cores.each(lambda _: state_here(), range(20))
        assert set(states) == {state_here()}
        assert relative_error(logits.float(), expected(x).float()) < (0.1 if way == "autocast" else 1e-5)
    assert logits.is_inference() == (way == "inference mode")
    assert helped


def state_here() -> tuple[bool, bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


def test_each_thread_works_alone_and_settings_stay(threads: int) -> None:
    other: list[int] = []
    inside, outside = threading.Event(), threading.Event()

    def somebody() -> None:
        torch.set_num_threads(threads)
        inside.wait()
        other.append(torch.get_num_threads())
        outside.set()

    beside = threading.Thread(target=somebody)
    beside.start()

    def item(_: int) -> int:
        inside.set()
        outside.wait()
        return torch.get_num_threads()

    assert cores.each(item, range(20)) == [1] * 20
    beside.join()
    assert other == [threads]
    assert torch.get_num_threads() == threads


def test_every_thread_helps(threads: int) -> None:
    """Each waits with its item for the others."""
    together = threading.Barrier(threads, timeout=60)
    names = cores.each(lambda _: (together.wait(), threading.current_thread().name)[1], range(threads))
    assert len(set(names)) == threads


@pytest.mark.parametrize("least", [1, 1 << 14, 1 << 40], ids=["shared", "shared by some passes", "not shared"])
@pytest.mark.parametrize("size", [(6, 9), (2, 9), (1, 17), (17, 1)], ids=str)
def test_a_sample_has_the_same_bits_in_any_batch(
    size: tuple[int, int], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LEAST_SHARED_BYTES", least)
    config = {**CONFIG, "input_size": size}
    _, model = pair(config, torch.float32)
    x = spectrograms(config, 5, torch.float32)
    with torch.no_grad():
        together = model(x)
        assert all(torch.equal(model(x[index : index + 1])[0], together[index]) for index in range(5))
        assert torch.equal(model(x[:3]), together[:3])


def test_results_are_in_order() -> None:
    assert cores.each(lambda number: 2 * number, range(100)) == list(range(0, 200, 2))
    assert cores.each(lambda number: number, []) == []


def test_shares_hold_every_item_once_in_order(threads: int) -> None:
    for count in range(10):
        parts = cores.shares(range(count))
        assert [number for part in parts for number in part] == list(range(count))
        assert len(parts) == max(1, min(count, threads))


@pytest.mark.parametrize(
    "error", [ValueError("planted"), KeyboardInterrupt(), torch.OutOfMemoryError("planted")], ids=repr
)
@pytest.mark.parametrize("where", ["everywhere", "in one"])
def test_what_fails_is_raised_and_the_next_call_is_right(error: BaseException, where: str, threads: int) -> None:
    seen: list[int] = []

    def item(number: int) -> int:
        seen.append(number)
        if where == "everywhere" or number == 3:
            raise error
        return number

    with pytest.raises(type(error)):
        cores.each(item, range(1000))
    assert len(seen) < 1000 if where == "everywhere" else 3 in seen
    assert torch.get_num_threads() == threads
    assert cores.each(lambda number: number, range(10)) == list(range(10))


def test_after_a_failure_no_item_is_begun(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in the middle of one ends it."""
    seen: list[int] = []
    recorded = threading.Event()

    class Failed(dict[int, BaseException]):
        def __setitem__(self, number: int, error: BaseException) -> None:
            super().__setitem__(number, error)
            recorded.set()

    build = cores._Work.__init__

    def prepared(work: Any, *given: Any) -> None:
        build(work, *given)
        work._failed = Failed()

    monkeypatch.setattr(cores._Work, "__init__", prepared)

    def item(number: int) -> None:
        seen.append(number)
        if number == 3:
            raise ValueError("planted")
        if number > 3:
            recorded.wait(60)

    with pytest.raises(ValueError, match="planted"):
        cores.each(item, range(1000))
    assert len(seen) <= 4 + threads


def test_an_interruption_comes_before_an_error(threads: int) -> None:
    together = threading.Barrier(threads, timeout=60)

    def item(number: int) -> None:
        together.wait()
        raise KeyboardInterrupt if number == threads - 1 else ValueError("planted")

    with pytest.raises(KeyboardInterrupt):
        cores.each(item, range(threads))


def test_an_interrupted_wait_waits_for_what_was_begun(threads: int) -> None:
    """Nobody writes into a grid that its caller has given up."""
    begun, go_on, ended = threading.Event(), threading.Event(), []
    caller = threading.current_thread()

    def item(number: int) -> None:
        if threading.current_thread() is caller:
            begun.wait()
            go_on.set()
            raise KeyboardInterrupt
        begun.set()
        go_on.wait()
        ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        cores.each(item, range(threads))
    assert ended


def test_an_error_in_the_middle_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=3)
    normalize, calls = torch.nn.functional.layer_norm, iter(range(1000))

    def failing(*given: Any, **options: Any) -> Tensor:
        if next(calls) == 7:
            raise RuntimeError("planted")
        return normalize(*given, **options)

    with torch.no_grad():
        with monkeypatch.context() as planted:
            planted.setattr(torch.nn.functional, "layer_norm", failing)
            with pytest.raises(RuntimeError, match="planted"):
                model(x)
        assert relative_error(model(x), expected(x)) < 1e-12


def test_callers_in_several_threads() -> None:
    """They share the helping threads; none waits for another's work."""
    expected, model = pair(CONFIG, torch.float32)
    x = spectrograms(CONFIG, 3, torch.float32)
    wanted = gradients(expected, x)["logits"]
    errors: list[float] = []

    def call() -> None:
        torch.set_num_threads(3)
        for _ in range(5):
            with torch.no_grad():
                errors.append(relative_error(model(x), wanted))

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(errors) == 30
    assert max(errors) < 1e-5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_after_a_fork() -> None:
    """The child has none of the threads, and starts its own."""
    assert cores.each(lambda number: number, range(10)) == list(range(10))
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(120)
    assert child.exitcode == 0


def in_child() -> None:
    found = cores.each(lambda _: threading.current_thread().name, range(2000))
    sys.exit(0 if len(found) == 2000 and len(threading.enumerate()) >= 2 else 1)


def test_whoever_looks_on_sees_one_thread(helped: list[str]) -> None:
    _, model = pair(CONFIG, torch.float32)
    x = spectrograms(CONFIG, 3, torch.float32)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counted:
            model(x)
        with torch.profiler.profile() as profiled:
            model(x)
        with torch.device("cpu"):
            model(x)
    assert counted.get_total_flops() > 0
    assert any("bmm" in event.key for event in profiled.key_averages())
    assert not helped
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 1e-6


def test_dropout_without_gradients_is_drawn_in_order(helped: list[str]) -> None:
    _, model = pair({**CONFIG, "dropout_tr": 0.3}, torch.float32)
    x = spectrograms(CONFIG, 3, torch.float32)
    model.train()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(model(x))
    assert torch.equal(*found)
    assert not helped


def test_little_work_stays_in_one_thread(helped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LEAST_SHARED_BYTES", 1 << 20)
    monkeypatch.setattr(chunks, "CPU_CHUNK_BYTES", CPU_CHUNK_BYTES)
    _, model = pair(CONFIG, torch.float32)
    with torch.no_grad():
        model(spectrograms(CONFIG, 1, torch.float32))
    assert not helped


def test_chunks_of_a_sample_are_for_all_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BUDGETS.items():
        monkeypatch.setattr(chunks, name, value)
    rows = torch.empty(5, 64, 64, 16)
    for bytes_per_row in (1 << 14, 1 << 18, 1 << 20):
        with torch.no_grad():
            samples, count = chunks.chunk_size(rows, bytes_per_row)
        assert samples == 1
        assert -(-64 // count) >= threads
        assert count * bytes_per_row <= (6 << 20)
        samples, count = chunks.chunk_size(rows, bytes_per_row)
        assert -(-5 // samples) * -(-64 // count) >= threads


def test_small_samples_make_a_chunk_together(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {"LEAST_SHARED_BYTES": 1 << 20, "LEAST_ALONE_BYTES": 4 << 20, "LEAST_CHUNK_BYTES": 1 << 20, **BUDGETS}
    for name, value in shipped.items():
        monkeypatch.setattr(chunks, name, value)
    rows = torch.empty(12, 64, 64, 16)
    with torch.no_grad():
        assert chunks.chunk_size(rows, 1)[0] >= 12
        assert chunks.chunk_size(rows, 1 << 15) == ({2: 3, 3: 2}[threads], 64)
        assert chunks.chunk_size(rows, 1 << 16)[0] == 1


def test_why_not(monkeypatch: pytest.MonkeyPatch, helped: list[str]) -> None:
    monkeypatch.setattr(cores, "_libraries", lambda: ())
    assert cores.why_not() == "PyTorch's OpenMP is not to be reached"
    assert cores.each(lambda number: number, range(3)) == [0, 1, 2]
    torch.set_num_threads(1)
    assert cores.why_not() == "there is one thread"
    assert not helped


def test_work_is_forgotten() -> None:
    """Though a helping thread that was busy has not come upon it yet."""

    class Item:
        pass

    items = [Item() for _ in range(10)]
    known = [weakref.ref(item) for item in items]
    work = cores._Work(lambda item: item, items)
    work.take()
    work.end()
    assert work.results() == items
    work.help()
    del items
    assert not any(reference() for reference in known)
