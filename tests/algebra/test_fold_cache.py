"""Where a GPU computes, kept weights are compared once for a model, and nobody waits for it before there is work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import pair, spectrograms
from support.driver.comparing import compared_as_on_a_gpu
from torch import Tensor, nn

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from septr_fast.algebra import fold_cache
from septr_fast.algebra.fold import fold
from septr_fast.algebra.fold_cache import FoldCache, compare
from septr_fast.passes import dispatch

CONFIG = {**SMALL["wide"], "depth": 3}


@pytest.fixture
def model() -> SepTr:
    """In evaluation, with weights kept."""
    built = pair(CONFIG)[1].eval()
    with torch.no_grad():
        built(spectrograms(CONFIG, batch=2))
    return built


@torch.no_grad()
def logits(model: SepTr, **more: Any) -> Tensor:
    torch.manual_seed(7)
    result: Tensor = model(spectrograms(CONFIG, batch=2), **more)
    return result


def test_one_comparison_for_a_model(model: SepTr) -> None:
    before = logits(model)
    with compared_as_on_a_gpu() as happened:
        assert torch.equal(logits(model), before)
        assert torch.equal(logits(model, lengths=[CONFIG["input_size"][1]] * 2), before)
    assert happened == ["asked", "same"] * 2


def test_nothing_is_asked_where_nothing_is_kept() -> None:
    model = pair(CONFIG)[1].eval()
    with compared_as_on_a_gpu() as happened:
        logits(model)
        assert happened == []
        logits(model)
    assert happened == ["asked", "same"]


def test_the_answer_is_read_when_all_work_is_given(model: SepTr, monkeypatch: pytest.MonkeyPatch) -> None:
    with compared_as_on_a_gpu() as happened:
        for name in ("low_rank_pass", "axis_pass", "class_only_pass"):
            run = getattr(dispatch, name)
            monkeypatch.setattr(dispatch, name, lambda *given, run=run: happened.append("pass") or run(*given))
        logits(model)
    assert happened == ["asked", *["pass"] * 6, "same"]


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("invariant", [False, True])
def test_a_change_that_no_counter_sees(model: SepTr, block: int, invariant: bool) -> None:
    model.set_batch_invariant(invariant)
    before = logits(model)
    with compared_as_on_a_gpu() as happened:
        model.blocks[block].transformer_w.layers[0][1].norm.bias.data[3] += 0.5
        after = logits(model)
        assert happened[:2] == ["asked", "differs"]
        assert len(happened) > 2, "then each block compares for itself"
        happened.clear()
        assert torch.equal(logits(model), after)
        assert happened == ["asked", "same"]
    fresh = SepTr(**CONFIG).double().eval()
    fresh.load_state_dict(model.state_dict())
    fresh.set_batch_invariant(invariant)
    assert torch.equal(logits(fresh), after)
    assert not torch.equal(after, before)


def hooked(model: SepTr) -> None:
    model.blocks[1].register_forward_hook(lambda *_: None)


def written(model: SepTr) -> None:
    model.blocks[1].transformer_h.sublayers[1].fn.net[1] = nn.ReLU()


def hooked_projection(model: SepTr) -> None:
    model.blocks[0].projection.register_forward_hook(lambda *_: None)


def with_dropout(model: SepTr) -> None:
    model.blocks[0].transformer_h.sublayers[1].fn.net[2].p = 0.5
    model.train()


@pytest.mark.parametrize("change", [hooked, written, hooked_projection, with_dropout])
def test_what_must_not_run_twice_compares_block_by_block(change: Callable[[SepTr], None], model: SepTr) -> None:
    change(model)
    logits(model)
    with compared_as_on_a_gpu() as happened:
        logits(model)
    assert happened == ["asked", "same"] * 3


def test_with_gradients_nothing_is_kept_or_asked(model: SepTr) -> None:
    with compared_as_on_a_gpu() as happened:
        model(spectrograms(CONFIG, batch=2)).sum().backward()
    assert happened == []


def test_while_a_graph_is_captured_weights_are_folded_in_it(model: SepTr, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[object] = []
    monkeypatch.setattr(fold_cache, "_captures", lambda parameters: True)
    monkeypatch.setattr("septr_fast.block.fold", lambda *given: folded.append(given) or fold(*given))
    with compared_as_on_a_gpu() as happened:
        logits(model)
    assert happened == []
    assert len(folded) == 6


def test_what_one_stream_has_folded_serves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cache: FoldCache[int] = FoldCache()
    numbers = iter(range(10))
    found = []
    for stream in (7, 7, 8, 8, 7):
        monkeypatch.setattr(fold_cache, "_stream", lambda parameters, stream=stream: stream)
        found.append(cache.get("key", [torch.ones(2)], lambda: next(numbers)))
    assert found == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_smallest_difference_is_seen(dtype: torch.dtype) -> None:
    kept = [torch.randn(3, 5).to(dtype), torch.zeros(4, dtype=dtype), torch.ones((), dtype=torch.float32)]
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for index, value in [(1, smallest), (1, -smallest), (0, float("nan")), (0, float("inf")), (2, 1 + 2.0**-23)]:
        cache: FoldCache[str] = FoldCache()
        parameters = [one.clone() for one in kept]
        with compared_as_on_a_gpu():
            cache.get("key", kept, lambda: "folded")
            for wanted in (False, True):
                differ = compare([(cache, parameters)])
                assert differ is not None
                assert differ() is wanted
                parameters[index].view(-1)[0] = value
            assert cache.get("key", parameters, lambda: "again") == "again"


def test_tensors_of_other_kinds_are_compared_as_ever() -> None:
    cache: FoldCache[int] = FoldCache()
    numbers = [torch.arange(3)]
    with compared_as_on_a_gpu() as happened:
        assert cache.get("key", numbers, lambda: 1) == cache.get("key", numbers, lambda: 2) == 1
        assert compare([(cache, numbers)]) is None
    assert happened == []
