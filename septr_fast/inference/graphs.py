"""A model's calls without gradients as CUDA graphs: captured once for a shape, then started by one launch each.

A pass of the default model starts about a hundred kernels, and for small batches the processor takes longer to start
them than a GPU to run them. What is captured is the way from spectrograms to the class token, with the folded weights
that the model keeps; they are compared with the parameters beside every replay, as the model itself does.

A graph holds addresses. So everything that it reads is kept as long as the graph, and before every call is looked at
what the graph was captured of: modules, their attributes, where their tensors lie, and which weights are folded.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from septr_fast.algebra import fold_cache
from septr_fast.algebra.reading import every_module_is_hooked
from septr_fast.model import SepTr, SepTrBlock
from septr_fast.passes.inputs import autocasts, float32_products, tensors_below
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.observers import differentiates_forward, records

_logger = logging.getLogger("septr_fast")
_capturing = threading.Lock()
"""PyTorch captures one graph at a time."""
_FLAGS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")


class Graph:
    """A call without arguments, captured on a CUDA device.

    Args:
        call: starts work on the current stream, reading and writing the same memory at every call.
        stream: that captures, of one owner alone: the workspaces of its products go into the graph.
        pool: memory shared with other graphs that are never replayed at the same time.

    Attributes:
        result: what `call` returned; every replay writes it anew.
    """

    def __init__(self, call: Callable[[], Tensor], stream: Any, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        mode: dict[str, Any] = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with _capturing, torch.cuda.stream(stream), torch.cuda.graph(self._graph, **mode):
            self.result = call()

    def replay(self) -> None:
        """Start it again, on the current stream."""
        self._graph.replay()


class Turns:
    """Work on memory that several threads and streams share, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._done: Any = None

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """Start work on `device` when what was started in the turn before is done."""
        with self._lock, torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done = stream.record_event()

    @contextmanager
    def last(self) -> Iterator[None]:
        """Wait until all work is done, and let none begin."""
        with self._lock:
            if self._done is not None:
                self._done.synchronize()
            yield


class _State:
    """What a graph is captured of, but for the values of parameters; equal as long as nothing was replaced."""

    def __init__(self, model: SepTr) -> None:
        modules: list[nn.Module] = [model.transformer]
        for module in modules:
            modules += [below for below in module._modules.values() if below is not None]
        tensors = [model.cls_token, *tensors_below(model.transformer)]
        attributes = [list(vars(module).values()) for module in modules]
        entries = [block._cache.entry for block in model.blocks]
        self._held: list[Any] = [modules, attributes, tensors, entries]
        self._numbers = [*map(id, modules), *map(id, entries), *(id(x) for each in attributes for x in each)]
        self._places = [(x.data_ptr(), x.shape, x.stride(), x.dtype) for x in tensors]
        self.called = any(_is_called(module) for module in (model, *modules)) or every_module_is_hooked()
        """Whether a module has hooks, or gives what it computes for a parameter: then no graph serves."""

    def hold(self) -> None:
        """Keep the memory of all tensors, so that nothing else can come to lie there."""
        self._held.append([x.detach() for x in self._held[2]])

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _State) and self._numbers == other._numbers
        return same and self._places == other._places  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


def _is_called(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or (isinstance(module, SepTr | SepTrBlock) and "parametrizations" in module._modules)


@dataclass(frozen=True)
class _Captured:
    """A graph and the memory that it reads its input from."""

    graph: Graph
    x: Tensor
    lengths: Lengths | None

    def run(self, x: Tensor, lengths: Lengths | None) -> Tensor:
        """Replay for other values."""
        self.x.copy_(x)
        if self.lengths is not None and lengths is not None:
            self.lengths.valid.copy_(lengths.valid)
        self.graph.replay()
        return self.graph.result.clone()


@dataclass
class _Kept:
    """What belongs to one state of a model.

    Attributes:
        state: that state.
        asked: what `SepTr._kept` gives in it.
        pool: memory of all graphs.
        seen: inputs that were computed once.
        graphs: by inputs, those used last behind the others.
    """

    state: _State
    asked: Any
    pool: Any
    seen: set[Hashable] = field(default_factory=set)
    graphs: OrderedDict[Hashable, _Captured] = field(default_factory=OrderedDict)


class GraphedSepTr:
    """A `SepTr` whose calls without gradients are replayed from CUDA graphs; see `graphed`."""

    def __init__(self, model: SepTr, most: int) -> None:
        if not isinstance(model, SepTr):
            raise TypeError(f"model: expected a septr_fast.SepTr, got {type(model).__name__}")
        if most < 1:
            raise ValueError(f"most: expected at least one graph, got {most}")
        self.model = model
        self._most = most
        self._kept: _Kept | None = None
        self._streams: dict[torch.device, Any] = {}
        self._turns = Turns()
        self._fails = False

    def __call__(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None = None, lengths_axis: str = "width"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classify spectrograms; arguments, results and errors are those of `SepTr.forward`."""
        state = None if self._fails or _plainly(self.model, x) else _State(self.model)
        if state is None or state.called:
            plain: Tensor | tuple[Tensor, Tensor] = self.model(x, lengths, lengths_axis)
            return plain
        return self.model._forward(x, lengths, lengths_axis, _Call(self, state))

    @property
    def count(self) -> int:
        """How many graphs are kept."""
        return 0 if self._kept is None else len(self._kept.graphs)

    def clear(self) -> None:
        """Give back the memory of all graphs, when what was started is done."""
        with self._turns.last():
            self._kept = None

    def __del__(self) -> None:
        with suppress(Exception):  # PyTorch may be gone when the process ends.
            self.clear()

    def __reduce__(self) -> tuple[Any, tuple[SepTr, int]]:
        return type(self), (self.model, self._most)

    def compare(self, state: _State) -> Callable[[], bool] | None:
        """`SepTr._compare`, which need not look at modules that are what they were."""
        kept = self._kept
        return fold_cache.compare(kept.asked) if kept is not None and kept.state == state else self.model._compare()

    def through(self, state: _State, x: Tensor, cls_token: Tensor, lengths: Lengths | None) -> Tensor:
        """`SepTr._through` where weights were compared."""
        key = _key(x, lengths)
        with self._turns.turn(x.device):
            kept = self._kept
            if kept is None or kept.state != state:
                self.clear()
                state.hold()
                pool = torch.cuda.graph_pool_handle() if x.is_cuda else None
                kept = self._kept = _Kept(state, self.model._kept(), pool)
            captured = kept.graphs.get(key)
            if captured is not None:
                kept.graphs.move_to_end(key)
                return captured.run(x, lengths)
            if key in kept.seen:
                return self._capture(kept, key, x, cls_token, lengths)
            kept.seen.add(key)
            return self.model._through(x, cls_token, lengths, compared=True)

    def _capture(self, kept: _Kept, key: Hashable, x: Tensor, cls_token: Tensor, lengths: Lengths | None) -> Tensor:
        """Compute, and capture the same once more."""
        with torch.inference_mode(False), torch.no_grad(), _without_autocast_cache():
            own = x.clone()
            own_lengths = None if lengths is None else Lengths(lengths.axis, lengths.valid.clone())

            def call() -> Tensor:
                return self.model._through(own, cls_token, own_lengths, compared=True)

            result = call()
            if _State(self.model) != kept.state:
                return result
            try:
                graph = Graph(call, self._stream(x.device), kept.pool)
            except RuntimeError as error:
                self._fails = True
                _logger.warning("calls are not replayed from CUDA graphs: capturing one failed: %s", error)
                return result
        if _State(self.model) == kept.state:
            kept.graphs[key] = _Captured(graph, own, own_lengths)
        if len(kept.graphs) > self._most:
            kept.graphs.popitem(last=False)
        return result

    def _stream(self, device: torch.device) -> Any:
        if device.type == "cuda" and device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams.get(device)


@dataclass(frozen=True)
class _Call:
    """One call, as `SepTr._forward` asks for it."""

    graphed: GraphedSepTr
    state: _State

    def _compare(self) -> Callable[[], bool] | None:
        return self.graphed.compare(self.state)

    def _through(self, x: Tensor, cls_token: Tensor, lengths: Lengths | None, *, compared: bool) -> Tensor:
        if compared:
            return self.graphed.through(self.state, x, cls_token, lengths)
        return self.graphed.model._through(x, cls_token, lengths)


def graphed(model: SepTr, most: int = 8) -> GraphedSepTr:
    """Let calls of `model` under `torch.no_grad()` be replayed from CUDA graphs: one launch in place of a hundred.

    The result is called like the model and gives the same bits. Inputs of a shape, dtype, axis of lengths and autocast
    seen first are computed by the model, the second time a graph is captured; from then on the input is copied, the
    graph started and the result copied. The model may be trained, loaded or changed in between: weights are compared
    at every call, and where anything else has changed graphs are captured anew. On a CPU, with gradients, in training
    mode with dropout, with hooks, for a `forward` or layers of your own, and after a capture that failed, which is
    logged, it calls the model.

    The graphs share the memory of one pass, and each has an input besides. Calls from several threads and streams wait
    for one another.

    Args:
        model: on any device.
        most: graphs kept, those used last.

    Raises:
        TypeError: for another model.
        ValueError: for less than one graph.

    Example:
        >>> fast = graphed(SepTr(input_size=(16, 24), num_classes=10, depth=1, heads=2, dim_head=8, dim=16).eval())
        >>> with torch.no_grad():
        ...     fast(torch.zeros(4, 1, 16, 24)).shape
        torch.Size([4, 10])
    """
    return GraphedSepTr(model, most)


def _plainly(model: SepTr, x: Tensor) -> bool:
    """Whether a call is the model's own whatever its blocks are."""
    if torch.is_grad_enabled() or records() or differentiates_forward() or torch._C._len_torch_dispatch_stack():
        return True
    own = type(model).forward is not SepTr.forward or type(model).__call__ is not nn.Module.__call__
    if own or "forward" in vars(model) or model._compiled_call_impl is not None:
        return True
    return type(x) is not Tensor or not x.numel()


def _key(x: Tensor, lengths: Lengths | None) -> Hashable:
    """What one graph serves: inputs, and settings of PyTorch that a call depends on."""
    autocast = torch.get_autocast_dtype(x.device.type) if autocasts(x.device.type) else None
    flags = tuple(getattr(torch.backends.cuda.matmul, name, None) for name in _FLAGS)
    kernels = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    settings = (autocast, float32_products(), flags, kernels, torch.are_deterministic_algorithms_enabled())
    return (x.shape, x.stride(), x.dtype, x.device, None if lengths is None else lengths.axis, settings)


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Let autocast keep none of the parameters that it rounds: a graph would read them when they are gone."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
