"""Calls by CUDA graphs: when one is captured, what it is captured of, and when it serves no more.

A graph is stood in for by what a graph does: it runs the same call on the same memory again. Real ones are captured
where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.compare import pair, spectrograms
from support.driver.comparing import compared_as_on_a_gpu
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, graphed
from septr_fast.algebra import fold_cache
from septr_fast.inference import graphs
from septr_fast.inference.graphs import GraphedSepTr

CONFIG = {**SMALL["wide"], "depth": 3}
happened: list[str] = []


class Replayed:
    """In place of a graph."""

    def __init__(self, call: Callable[[], Tensor], device: torch.device, pool: object) -> None:
        happened.append("captured")
        self._call = call
        self.result = self._run()

    def _run(self) -> Tensor:
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(fold_cache, "_captures", lambda parameters: True)
            return self._call()

    def replay(self) -> None:
        happened.append("replayed")
        self.result.copy_(self._run())


class AtOnce:
    """In place of turns on a GPU."""

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        yield


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    happened.clear()
    monkeypatch.setattr(graphs, "Graph", Replayed)
    monkeypatch.setattr(graphs, "Turns", AtOnce)
    with compared_as_on_a_gpu():
        yield


@pytest.fixture
def model() -> SepTr:
    return pair(CONFIG)[1].eval()


@pytest.fixture
def fast(model: SepTr) -> GraphedSepTr:
    return graphed(model)


def calls(fast: GraphedSepTr, times: int = 1, batch: int = 2, **given: Any) -> list[str]:
    """Call with new inputs, compare with the model to the bit, and say what happened since."""
    happened.clear()
    for _ in range(times):
        x = spectrograms(CONFIG, batch=batch).clone()
        x += torch.randn_like(x)
        with torch.no_grad():
            before = list(happened)
            expected = fast.model(x, **given)
            assert happened == before
            assert all(torch.equal(a, b) for a, b in zip(_all(fast(x, **given)), _all(expected), strict=True))
    return list(happened)


def _all(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def test_the_first_call_captures_and_others_replay(fast: GraphedSepTr) -> None:
    assert calls(fast, 4) == ["captured", "replayed", "replayed", "replayed"]


def test_a_new_model_is_computed_first(model: SepTr) -> None:
    fast, x = graphed(model), spectrograms(CONFIG, batch=2)
    with torch.no_grad():
        results = [fast(x) for _ in range(3)]
    assert happened == ["captured", "replayed"]
    assert all(torch.equal(result, results[0]) for result in results)


def test_results_are_the_callers_own(fast: GraphedSepTr) -> None:
    calls(fast, 2)
    with torch.no_grad():
        first = fast(spectrograms(CONFIG, batch=2))
        kept = first.clone()
        fast(spectrograms(CONFIG, batch=2) + 1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("return_cls", [False, True])
@pytest.mark.parametrize("invariant", [False, True])
def test_all_that_the_model_returns(fast: GraphedSepTr, return_cls: bool, invariant: bool) -> None:
    fast.model.return_cls = return_cls
    fast.model.set_batch_invariant(invariant)
    assert calls(fast, 3).count("replayed") == (5 if invariant else 2)


def test_each_shape_has_a_graph_and_the_last_are_kept(model: SepTr) -> None:
    fast = graphed(model, most=2)
    for batch in (1, 2, 3):
        assert calls(fast, 2, batch) == ["captured", "replayed"]
    assert len(fast) == 2
    assert calls(fast, 1, 2) == ["replayed"]
    assert calls(fast, 1, 1) == ["captured"]
    assert calls(fast, 1, 2) == ["replayed"], "used after the third shape"


def test_lengths_are_read_anew(fast: GraphedSepTr) -> None:
    width, height = CONFIG["input_size"][1], CONFIG["input_size"][0]
    assert calls(fast, 2, lengths=[width, width // 2]) == ["captured", "replayed"]
    assert calls(fast, lengths=[width // 2, width // 3]) == ["replayed"]
    assert calls(fast, lengths=[height // 2, height], lengths_axis="height") == ["captured"]
    assert calls(fast, lengths=[width, width]) == ["captured"], "all tokens are valid: another pass"
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
def test_changed_weights_are_seen(fast: GraphedSepTr, change: Callable[[SepTr], None]) -> None:
    calls(fast, 2)
    x = spectrograms(CONFIG, batch=2)
    with torch.no_grad():
        before = fast(x)
        torch.enable_grad()(change)(fast.model)
        after = fast(x)
        fresh = SepTr(**CONFIG).double().eval()
        fresh.load_state_dict(fast.model.state_dict())
        assert torch.equal(after, fresh(x))
    assert not torch.equal(after, before)
    assert calls(fast, 3)[-2:] == ["replayed", "replayed"]


def another_parameter(model: SepTr) -> None:
    block = model.blocks[1]
    block.pos_embedding_h = nn.Parameter(block.pos_embedding_h.detach().clone())


def another_storage(model: SepTr) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def eps(model: SepTr) -> None:
    model.blocks[0].transformer_w.sublayers[0].norm.eps = 0.1


def formulation(model: SepTr) -> None:
    model.blocks[1].take_formulations(("direct", "direct"))


@pytest.mark.parametrize("change", [another_parameter, another_storage, eps, formulation])
def test_what_a_graph_was_captured_of_is_looked_at(fast: GraphedSepTr, change: Callable[[SepTr], None]) -> None:
    calls(fast, 2)
    change(fast.model)
    found = calls(fast, 3)
    assert found[0] != "replayed"
    assert found[-2:] == ["replayed", "replayed"]


def test_a_new_classifier_needs_no_new_graph(fast: GraphedSepTr) -> None:
    calls(fast, 2)
    fast.model.reset_classifier(7)
    assert set(calls(fast, 2)) <= {"captured", "replayed"}


def test_autocast_and_precision_have_graphs_of_their_own(model: SepTr, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = graphed(model.float())
    x = spectrograms(CONFIG, batch=2).float()
    with torch.no_grad():
        for context in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
            with context:
                expected = model(x)
                assert [torch.equal(fast(x), expected) for _ in range(3)] == [True] * 3
        monkeypatch.setattr(graphs, "input_precision", lambda: "tf32")
        fast(x)
    assert happened.count("captured") == 3


def hooked(model: SepTr) -> None:
    model.blocks[1].transformer_w.register_forward_hook(lambda *_: None)


def hooked_itself(model: SepTr) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def own_layer(model: SepTr) -> None:
    model.blocks[1].transformer_h.sublayers[1].fn.net[1] = nn.ReLU()


def with_dropout(model: SepTr) -> None:
    model.blocks[0].transformer_h.sublayers[1].fn.net[2].p = 0.5
    model.train()


def subclassed(model: SepTr) -> None:
    model.blocks[0].transformer_h.sublayers[0].forward = lambda x: x  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, hooked_itself, own_layer, with_dropout, subclassed])
@pytest.mark.parametrize("before", [False, True])
def test_what_has_to_be_called_is_called(fast: GraphedSepTr, change: Callable[[SepTr], None], before: bool) -> None:
    if before:
        calls(fast, 2)
    change(fast.model)
    happened.clear()
    with torch.no_grad():
        for _ in range(2):
            torch.manual_seed(3)
            expected = fast.model(spectrograms(CONFIG, batch=2))
            torch.manual_seed(3)
            assert torch.equal(fast(spectrograms(CONFIG, batch=2)), expected)
    assert happened == []


def test_gradients_are_the_models(fast: GraphedSepTr) -> None:
    calls(fast, 2)
    happened.clear()
    x = spectrograms(CONFIG, batch=2).requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None
    fast.model.requires_grad_(False)
    y = x.detach().clone().requires_grad_()
    fast(y).sum().backward()
    assert torch.equal(y.grad, x.grad)
    assert happened == []
    assert calls(fast, 1)[-1] in ("captured", "replayed")


def test_wrong_arguments(model: SepTr) -> None:
    with pytest.raises(TypeError, match=r"model: expected a septr_fast\.SepTr, got Linear"):
        graphed(nn.Linear(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="most: expected at least one graph, got 0"):
        graphed(model, most=0)
    with pytest.raises(ValueError, match="x: expected"), torch.no_grad():
        graphed(model)(torch.zeros(2, 3))


class FromTheHost(TorchDispatchMode):
    """Keeps the names of operations that read values on the host, or bring tensors from there: no graph holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        reads = func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
        if reads or any(x.device.type == "cpu" for x in given):
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["merged", "direct", None])
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("axis", [None, "width", "height"])
def test_all_work_is_on_the_device(form: str | None, backend: str, axis: str | None) -> None:
    pytest.importorskip("triton")
    from septr_fast.passes.lengths import Lengths
    from septr_fast.tuning.kernel_launches import recording

    with torch.device("meta"):
        first = "width" if axis == "height" else "height"
        model = SepTr(**CONFIG, first_axis=first, formulation=form, backend=backend).eval()
    x = torch.empty(2, CONFIG.get("channels", 1), *CONFIG["input_size"], device="meta")
    valid = None if axis is None else Lengths(axis, torch.empty(2, dtype=torch.int64, device="meta"))
    with torch.no_grad(), recording(90), FromTheHost() as host:
        model._through(x, model.cls_token[0, 0], valid)
    assert host.found == []
    with FromTheHost() as host:
        torch.zeros(3, device="cpu").to("meta")
    assert host.found == ["aten::_to_copy"]
