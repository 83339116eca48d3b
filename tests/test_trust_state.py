"""The next call is right, whatever came before; and faults that are planted are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from trust import interruptions, state, together
from trust.outcome import silent

from septr_fast import SepTr, fold_cache
from septr_fast.fold_cache import FoldCache

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("runs in the interpreter")


def test_state() -> None:
    outcome = state.run(full=False, progress=silent)
    assert outcome.wrong == []
    assert outcome.figures["changes between two calls"] >= 60
    assert outcome.figures["calls that were stopped"] >= 20


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
    (found,) = state.lives(20, 20, lambda _: None, smallest=False)
    assert "than a new model's" in found or "Error" in found or "from the plain model" in found, found


def keep_before_folding(self: FoldCache[Any], key: object, parameters: Sequence[Tensor], fold: Any) -> Any:
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


def test_a_resizing_by_halves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_halves(self: SepTr, input_size: tuple[int, int]) -> None:
        for block in self.blocks:
            block.resize_positions(input_size)
        self._steps = self._plan()

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
