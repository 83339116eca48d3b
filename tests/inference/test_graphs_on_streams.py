"""What a graph is captured on: streams and turns as PyTorch is asked for them, and nothing of the host's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from support.versions import needs_kernels
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, graphed
from septr_fast.inference import graphs

CONFIG = {**SMALL["wide"], "depth": 3}


class Cuda:
    """Streams and events that write down what they are asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.events = 0

    def wait_event(self, event: str) -> None:
        self.asked.append(f"wait for {event}")

    def record_event(self) -> Any:
        self.events += 1
        return mock.Mock(
            __str__=mock.Mock(return_value=f"event {self.events}"),
            synchronize=lambda number=self.events: self.asked.append(f"synchronize event {number}"),
        )


def test_turns_wait_for_the_one_before_whatever_became_of_it() -> None:
    cuda = Cuda()
    with (
        mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "current_stream", return_value=cuda),
    ):
        turns = graphs.Turns()
        with turns.turn(torch.device("cuda")):
            pass
        with pytest.raises(MemoryError), turns.turn(torch.device("cuda")):
            raise MemoryError
        with turns.turn(torch.device("cuda")), turns.last():
            cuda.asked.append("clear")
    assert cuda.asked == ["wait for event 1", "wait for event 2", "synchronize event 2", "clear"]


def test_a_graph_is_captured_on_the_stream_of_its_owner() -> None:
    told: list[Any] = []

    @contextlib.contextmanager
    def within(name: str, *given: Any, **more: Any) -> Iterator[None]:
        told.append((name, given, more))
        yield
        told.append(f"out of {name}")

    def entered(name: str) -> Callable[..., Any]:
        return lambda *given, **more: within(name, *given, **more)

    graph = mock.Mock()
    with (
        mock.patch.object(torch.cuda, "CUDAGraph", return_value=graph),
        mock.patch.object(torch.cuda, "stream", entered("stream")),
        mock.patch.object(torch.cuda, "graph", entered("graph")),
    ):
        captured = graphs.Graph(lambda: told.append("call") or torch.ones(2), "own stream", "pool")
    mode = {"pool": "pool", "stream": "own stream", "capture_error_mode": "thread_local"}
    assert told == [
        ("stream", ("own stream",), {}),
        ("graph", (graph,), mode),
        "call",
        "out of graph",
        "out of stream",
    ]
    captured.replay()
    graph.replay.assert_called_once_with()


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
@pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_kernels), "torch"])
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


def test_wrong_arguments() -> None:
    model = SepTr(**CONFIG).eval()
    with pytest.raises(TypeError, match=r"model: expected a septr_fast\.SepTr, got Linear"):
        graphed(nn.Linear(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="most: expected at least one graph, got 0"):
        graphed(model, most=0)
    with pytest.raises(ValueError, match="x: expected"), torch.no_grad():
        graphed(model)(torch.zeros(2, 3))
