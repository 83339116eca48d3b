"""The next call is right, whatever came before; and faults that are planted are found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from trust.life import interruptions, together
from trust.life.model_life import Life
from trust.outcome import ShortForm
from trust.parts import state

from septr_fast import SepTr
from septr_fast.algebra import fold_cache
from septr_fast.algebra.fold_cache import FoldCache

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("runs in the interpreter")


def test_state(short_form: ShortForm) -> None:
    outcome = short_form(state)
    assert outcome.wrong == []
    assert outcome.figures["changes between two calls"] >= 60
    assert outcome.figures["calls that were stopped"] >= 20


class Nothing:
    """A life in which nothing happens, at no cost."""

    def fault(self) -> None:
        return None

    def __getattr__(self, name: str) -> object:
        def operation(self: Nothing) -> None: ...

        return MethodType(operation, self)


def test_runs_of_the_full_form_are_long_varied_and_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "Life", Nothing)
    runs = state.lives(state.FULL)
    assert [run.wrong() for run in runs] == [None] * len(runs)
    (long, *_) = rows = state.spread(runs)
    assert (long["runs"], long["shortest"]) == (6, 500)
    assert long["fewest kinds"] == len(state.OPERATIONS)
    assert [row["shortest"] for row in rows] == [row["asked for, in a row"] for row in rows]
    assert len({tuple(run.happened[:20]) for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("happened", "found"),
    [
        (state.OPERATIONS * 14, "expected 500 operations in a run, got"),
        (["accelerate"] * 500, "expected 20 kinds of operations in a run of 500, got 1"),
        (state.OPERATIONS[:19] * 26 + ["load"] * 6, "kinds of operations"),
        (
            [name for name in state.OPERATIONS * 20 if name[:4] not in ("step", "swap")][:500],
            "step of an optimizer, swap",
        ),
    ],
    ids=["short", "one kind", "few kinds", "kinds missing"],
)
def test_runs_that_do_not_count_are_found(happened: list[str], found: str) -> None:
    assert found in str(state.Run(500, happened, None).wrong())


def always_the_same(kept: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    return True


def of_the_same_version(kept: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    """What version counters tell, which do not see `.data`."""
    now = [(parameter._version, parameter.dtype) for parameter in parameters]
    seen = vars(kept[0]).setdefault("versions", now)
    return bool(seen == now)


@pytest.mark.parametrize("same", [always_the_same, of_the_same_version])
def test_stale_weights_are_found(same: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_cache, "_same_values", same)
    found = [state.live(seed, 20, smallest=False).wrong() for seed in range(3)]
    assert any(re.search("than a new model's|Error|from the plain model", str(one)) for one in found), found


def test_the_smallest_sequence_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Life, "fault", lambda self: "averaged" if self.__dict__.get("averaged") else None)
    monkeypatch.setattr(Life, "average", lambda self: vars(self).update(averaged=True))
    fault = str(state.live(0, 100).fault)
    assert fault.count("state.happen") == 1
    assert "state.happen(name='average', which=0)" in fault


def keep_before_folding(
    self: FoldCache[Any], key: object, parameters: Sequence[Tensor], fold: Any, *, compared: bool
) -> Any:
    entry = self._entry
    if entry is not None and entry[0] == key and fold_cache._same_values(entry[1], parameters):
        return entry[2]
    self._entry = (key, [parameter.detach().clone() for parameter in parameters], entry[2] if entry else [])
    self._entry = (*self._entry[:2], fold())
    return self._entry[2]


def test_an_entry_that_is_kept_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldCache, "get", keep_before_folding)
    count = interruptions.operations(interruptions.change_and_classify)
    places = range(count // 4, count, count // 20)
    assert any(interruptions.after(interruptions.change_and_classify, place, KeyboardInterrupt) for place in places)


@pytest.mark.parametrize(
    "case",
    [
        lambda: interruptions.after(interruptions.load, 10**6, KeyboardInterrupt),
        lambda: interruptions.after_resizing(10**6),
        lambda: interruptions.after_accelerating(10**6),
    ],
    ids=["load", "resize", "accelerate"],
)
def test_calls_that_were_not_stopped_are_found(case: Callable[[], str | None]) -> None:
    assert str(case()).startswith("not stopped: it ended after ")


def test_a_load_that_is_stopped_leaves_the_old_state() -> None:
    """The copies that are kept come first, then PyTorch's own; where one of them fails, all go back."""
    expected = interruptions.built().state_dict()
    for place in range(0, interruptions.operations(interruptions.load), 7):
        model = interruptions.built()
        with interruptions.interrupted(place, KeyboardInterrupt):
            interruptions.load(model)
        assert all(torch.equal(x, expected[name]) for name, x in model.state_dict().items()), place


def test_a_resizing_by_halves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_halves(self: SepTr, input_size: tuple[int, int]) -> None:
        for block in self.blocks:
            block.resize_positions(input_size)

    places = range(interruptions.operations(interruptions.resize))
    assert not any(interruptions.after_resizing(place) for place in places)
    monkeypatch.setattr(SepTr, "resize_positions", by_halves)
    assert any(interruptions.after_resizing(place) for place in places)


def test_threads_with_stale_weights_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert together.threads(rounds=2) == []
    monkeypatch.setattr(fold_cache, "_same_values", always_the_same)
    assert len(together.threads(rounds=2)) >= together.THREADS


def test_other_logits_of_workers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = together.logits

    def otherwise(*arguments: object) -> Tensor:
        return right(*arguments) + float(torch.utils.data.get_worker_info() is not None)

    monkeypatch.setattr(together, "logits", otherwise)
    assert together.workers("fork", 1) == ["workers by fork give other logits"]
