"""Calls by CUDA graphs: when one is captured, what it is captured of, and when it serves no more.

A graph is stood in for by what a graph does: the same operations again on the same memory. Real ones are captured where
there is a GPU.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.compare import pair, spectrograms
from support.driver.replaying import Replayed, replaying_as_on_a_gpu, unheld
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, graphed
from septr_fast.inference import graphs
from septr_fast.inference.graphs import GraphedSepTr

CONFIG = {**SMALL["wide"], "depth": 3}


@pytest.fixture(autouse=True)
def happened() -> Iterator[list[str]]:
    with replaying_as_on_a_gpu() as told:
        yield told


@pytest.fixture
def model() -> SepTr:
    return pair(CONFIG)[1].eval()


@pytest.fixture
def fast(model: SepTr) -> GraphedSepTr:
    return graphed(model)


@pytest.fixture
def calls(happened: list[str]) -> Callable[..., list[str]]:
    """Call with new inputs, compare with the model to the bit, and say what happened; the graphs' call comes first."""

    def call(fast: GraphedSepTr, times: int = 1, batch: int = 2, **given: Any) -> list[str]:
        happened.clear()
        for _ in range(times):
            x = spectrograms(CONFIG, batch=batch).clone().to(fast.model.cls_token.dtype)
            x += torch.randn_like(x)
            with torch.no_grad():
                found, expected = fast(x, **given), fast.model(x, **given)
            assert all(torch.equal(a, b) for a, b in zip(_all(found), _all(expected), strict=True))
            assert unheld(fast) == []
        return list(happened)

    return call


Calls = Callable[..., list[str]]


def _all(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def test_computed_then_captured_then_replayed(fast: GraphedSepTr, calls: Calls) -> None:
    assert calls(fast, 5) == ["captured", "replayed", "replayed"], "the first folds the weights"
    assert calls(fast, 4, batch=3) == ["captured", "replayed", "replayed"]


def test_results_are_the_callers_own(fast: GraphedSepTr, calls: Calls) -> None:
    calls(fast, 4)
    with torch.no_grad():
        first = fast(spectrograms(CONFIG, batch=2))
        kept = first.clone()
        fast(spectrograms(CONFIG, batch=2) + 1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("return_cls", [False, True])
@pytest.mark.parametrize("invariant", [False, True])
def test_all_that_the_model_returns(fast: GraphedSepTr, calls: Calls, return_cls: bool, invariant: bool) -> None:
    fast.model.return_cls = return_cls
    fast.model.set_batch_invariant(invariant)
    assert calls(fast, 5)[-2:] == ["replayed", "replayed"]


def test_each_shape_has_a_graph_and_the_last_are_kept(model: SepTr, calls: Calls) -> None:
    fast = graphed(model, most=2)
    calls(fast)
    for batch in (1, 2, 3):
        assert calls(fast, 3, batch) == ["captured", "replayed"]
    assert fast.count == 2
    assert calls(fast, 1, 2) == ["replayed"]
    assert calls(fast, 1, 1) == ["captured"], "seen before"
    assert calls(fast, 1, 2) == ["replayed"], "used after the third shape"
    one = graphed(model, most=1)
    for batch in (1, 2, 1, 2):
        assert calls(one, 2, batch)[-1] in ("captured", "replayed")
        assert one.count == 1
    one.clear()
    assert one.count == 0
    assert calls(one, 3, 1) == ["captured", "replayed"]


def test_lengths_are_read_anew(fast: GraphedSepTr, calls: Calls) -> None:
    height, width = CONFIG["input_size"]
    calls(fast)
    assert calls(fast, 3, lengths=[width, width // 2]) == ["captured", "replayed"]
    assert calls(fast, lengths=[width // 2, width // 3]) == ["replayed"]
    assert calls(fast, 2, lengths=[height // 2, height], lengths_axis="height") == ["captured"]
    assert calls(fast, 2, lengths=[width, width]) == ["captured"], "all tokens are valid: another pass"
    with pytest.raises(ValueError, match="lengths"), torch.no_grad():
        fast(spectrograms(CONFIG, batch=2), [0, 1])


def through_data(model: SepTr) -> None:
    model.blocks[1].transformer_h.sublayers[0].fn.to_qkv.weight.data[0] += 0.5


def positions(model: SepTr) -> None:
    with torch.no_grad():
        model.blocks[2].pos_embedding_w += 0.5


def the_class_token(model: SepTr) -> None:
    with torch.no_grad():
        model.cls_token += 0.5


def by_loading(model: SepTr) -> None:
    model.load_state_dict({name: value + 0.01 for name, value in model.state_dict().items()})


def by_training(model: SepTr) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(spectrograms(CONFIG, batch=2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("change", [through_data, positions, the_class_token, by_loading, by_training])
def test_changed_weights_are_seen(fast: GraphedSepTr, calls: Calls, change: Callable[[SepTr], None]) -> None:
    calls(fast, 4)
    x = spectrograms(CONFIG, batch=2)
    with torch.no_grad():
        before = fast(x)
        torch.enable_grad()(change)(fast.model)
        after = fast(x)
        fresh = SepTr(**CONFIG).double().eval()
        fresh.load_state_dict(fast.model.state_dict())
        assert torch.equal(after, fresh(x))
    assert not torch.equal(after, before)
    assert calls(fast, 4)[-2:] == ["replayed", "replayed"]


def another_parameter(model: SepTr) -> None:
    block = model.blocks[1]
    block.pos_embedding_h = nn.Parameter(block.pos_embedding_h.detach() + 1)


def another_storage(model: SepTr) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def assigned(model: SepTr) -> None:
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)


def another_dtype(model: SepTr) -> None:
    model.float()


def another_class_token(model: SepTr) -> None:
    model.cls_token = nn.Parameter(model.cls_token.detach() + 1)


def eps(model: SepTr) -> None:
    model.blocks[0].transformer_w.sublayers[0].norm.eps = 0.1


def eps_of_numpy(model: SepTr) -> None:
    model.blocks[0].transformer_w.sublayers[0].norm.eps = np.float64(0.2)


def formulation(model: SepTr) -> None:
    model.blocks[1].take_formulations(("direct", "direct"))


def another_transformer(model: SepTr) -> None:
    block = model.blocks[1]
    block.transformer_h, block.transformer_w = block.transformer_w, block.transformer_h


CHANGES = [another_parameter, another_storage, assigned, another_dtype, another_class_token]
CHANGES += [eps, eps_of_numpy, formulation, another_transformer]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_graph_was_captured_of_is_looked_at(
    fast: GraphedSepTr, calls: Calls, change: Callable[[SepTr], None]
) -> None:
    calls(fast, 4)
    change(fast.model)
    found = calls(fast, 5)
    assert found[0] != "replayed"
    assert found[-2:] == ["replayed", "replayed"]
    change(fast.model)
    calls(fast, 2)


def test_a_new_classifier_needs_no_new_graph(fast: GraphedSepTr, calls: Calls) -> None:
    calls(fast, 4)
    fast.model.reset_classifier(7)
    fast.model.fc.to(fast.model.cls_token)
    assert calls(fast, 2) == ["replayed", "replayed"]


@pytest.mark.parametrize("form", [None, "direct", "merged"])
def test_autocast_has_graphs_of_its_own(form: str | None, calls: Calls, happened: list[str]) -> None:
    """Of what autocast has rounded nothing is read when it is gone; in turn with plain calls nothing is captured."""
    fast = graphed(SepTr(**CONFIG, formulation=form).eval())
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(fast, 5)[-2:] == ["replayed", "replayed"]
    assert calls(fast, 4)[-1:] == ["replayed"]
    happened.clear()
    for enabled in (True, False) * 4:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            calls(fast)
    assert happened == []


def test_settings_that_a_graph_depends_on(fast: GraphedSepTr, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "captured" in calls(fast, 4)
    monkeypatch.setattr(graphs, "float32_products", lambda: "tf32")
    assert calls(fast, 3) == ["captured", "replayed"]
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert calls(fast, 3) == ["captured", "replayed"]
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_in_inference_mode_and_out_of_it(fast: GraphedSepTr, happened: list[str]) -> None:
    x = spectrograms(CONFIG, batch=2)
    for _ in range(3):
        with torch.inference_mode():
            inside = fast(x)
        with torch.no_grad():
            outside = fast(x)
        assert torch.equal(inside, outside)
        assert not outside.is_inference()
    assert happened.count("replayed") >= 3


def hooked(model: SepTr) -> None:
    model.blocks[1].transformer_w.register_forward_hook(lambda *_: None)


def hooked_itself(model: SepTr) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def own_layer(model: SepTr) -> None:
    model.blocks[1].transformer_h.sublayers[1].fn.net[1] = nn.ReLU()


def with_dropout(model: SepTr) -> None:
    model.blocks[0].transformer_h.sublayers[1].fn.net[2].p = 0.5
    model.train()


def own_forward_of_a_layer(model: SepTr) -> None:
    model.blocks[0].transformer_h.sublayers[0].forward = lambda x: x  # type: ignore[method-assign]


def own_forward(model: SepTr) -> None:
    model.forward = lambda *given: given[0].sum()  # type: ignore[method-assign]


class Doubled(SepTr):
    """With a `forward` of its own."""

    def forward(self, x: Tensor, *more: Any) -> Any:
        return super().forward(2 * x, *more)


def subclassed(model: SepTr) -> None:
    model.__class__ = Doubled


def parametrized(model: SepTr) -> None:
    nn.utils.parametrize.register_parametrization(model.blocks[1], "pos_embedding_h", nn.Tanh())


CALLED = [hooked, hooked_itself, own_layer, with_dropout, own_forward_of_a_layer, own_forward, subclassed, parametrized]


@pytest.mark.parametrize("change", CALLED)
@pytest.mark.parametrize("before", [False, True])
def test_what_has_to_be_called_is_called(
    fast: GraphedSepTr, calls: Calls, happened: list[str], change: Callable[[SepTr], None], before: bool
) -> None:
    if before:
        calls(fast, 4)
    change(fast.model)
    happened.clear()
    x = spectrograms(CONFIG, batch=2)
    with torch.no_grad():
        for _ in range(4):
            torch.manual_seed(3)
            expected = fast.model(x)
            torch.manual_seed(3)
            assert torch.equal(fast(x), expected)
    assert happened == []


def test_gradients_are_the_models(fast: GraphedSepTr, calls: Calls, happened: list[str]) -> None:
    calls(fast, 4)
    happened.clear()
    x = spectrograms(CONFIG, batch=2).requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None
    fast.model.requires_grad_(False)
    y = x.detach().clone().requires_grad_()
    fast(y).sum().backward()
    assert torch.equal(y.grad, x.grad)
    assert torch.equal(fast(x.detach()), fast.model(x.detach()))
    assert happened == []
    assert calls(fast, 3)[-1] == "replayed"


def test_counters_and_empty_batches_see_the_model(fast: GraphedSepTr, calls: Calls, happened: list[str]) -> None:
    calls(fast, 4)
    happened.clear()
    x = spectrograms(CONFIG, batch=2)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            fast(x)
        assert counter.get_total_flops() > 0
        assert fast(x[:0]).shape == (0, 35)
    assert happened == []


def test_a_capture_that_fails_is_told_once(
    fast: GraphedSepTr, calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "Graph", fail)
    with caplog.at_level(logging.WARNING, "septr_fast"):
        assert calls(fast, 6) == []
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "calls are not replayed from CUDA graphs"
    ]


def test_weights_folded_anew_beside_a_capture_are_no_part_of_it(
    fast: GraphedSepTr, calls: Calls, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may do it: what the graph reads is kept by nobody then."""
    fast, kind = graphed(fast.model.float()), graphs.Graph

    def disturbed(*given: Any) -> Replayed:
        graph = kind(*given)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            fast.model(spectrograms(CONFIG, batch=2).float())
        return graph

    monkeypatch.setattr(graphs, "Graph", disturbed)
    calls(fast, 3)
    assert fast.count == 0
    monkeypatch.setattr(graphs, "Graph", kind)
    assert calls(fast, 4)[-1] == "replayed"


def test_copies_start_without_graphs(fast: GraphedSepTr, calls: Calls) -> None:
    calls(fast, 4)
    assert fast.count == 1
    kind, given = fast.__reduce__()
    for other in (copy.deepcopy(fast), kind(*copy.deepcopy(given))):
        assert other.count == 0
        assert other.model is not fast.model
        assert calls(other, 4)[-1] == "replayed"


def test_a_default_device_is_not_asked_for_lengths(fast: GraphedSepTr) -> None:
    x, lengths = spectrograms(CONFIG, batch=2), [CONFIG["input_size"][1]] * 2
    with torch.no_grad():
        expected = fast.model(x)
        with torch.device("meta"):
            assert torch.equal(fast(x, lengths), expected)
