"""A model's calls without gradients as CUDA graphs: captured once for a shape, then started by one launch each.

A pass of the default model launches about a hundred kernels, and for small batches the processor takes longer to
start them than a GPU to run them. What is captured is the way from spectrograms to the class token, with the folded
weights that the model keeps; they are compared with the parameters beside every replay, as the model itself does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from septr_fast.algebra.reading import every_module_is_hooked, has_hooks
from septr_fast.kernels.launch import input_precision
from septr_fast.model import SepTr
from septr_fast.passes.inputs import autocasts, differentiates, tensors_below
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.observers import differentiates_forward, records

PLAIN = (bool, int, float, str, tuple, type(None))
"""Types of a module's own attributes that a call may depend on."""


class Graph:
    """A call without arguments, captured on a CUDA device.

    Args:
        call: starts work on the current stream, reading and writing the same memory at every call.
        device: where.
        pool: memory shared with other graphs that are never replayed at the same time.

    Attributes:
        result: what `call` returned; every replay writes it anew.
    """

    def __init__(self, call: Callable[[], Tensor], device: torch.device, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self._graph, pool=pool):
            self.result = call()

    def replay(self) -> None:
        """Start it again, on the current stream."""
        self._graph.replay()


class Turns:
    """Work on memory that several threads and streams share, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """Start work when what was started in the turn before is done."""
        with self._lock, torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)
            yield
            self._done = stream.record_event()


@dataclass(frozen=True)
class _Captured:
    """A graph, the memory that it reads its input from, and what it was captured of."""

    graph: Graph
    x: Tensor
    valid: Tensor | None
    state: object
    held: object


class GraphedSepTr:
    """A `SepTr` whose calls without gradients are replayed from CUDA graphs; see `graphed`."""

    def __init__(self, model: SepTr, most: int) -> None:
        if not isinstance(model, SepTr):
            raise TypeError(f"model: expected a septr_fast.SepTr, got {type(model).__name__}")
        if most < 1:
            raise ValueError(f"most: expected at least one graph, got {most}")
        self.model = model
        self._most = most
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._pool: Any = None
        self._turns = Turns()

    def __call__(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None = None, lengths_axis: str = "width"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classify spectrograms; arguments, results and errors are those of `SepTr.forward`."""
        if self._why_plainly(x) is not None:
            plain: Tensor | tuple[Tensor, Tensor] = self.model(x, lengths, lengths_axis)
            return plain
        return self.model._forward(x, lengths, lengths_axis, self._through)

    def __len__(self) -> int:
        """How many graphs are kept."""
        return len(self._graphs)

    def _why_plainly(self, x: Tensor) -> str | None:
        """Why a call is the model's own; None where a graph may do it."""
        if records():
            return "a graph of another kind is made"
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters()):
            return "gradients can reach parameters"
        if type(x) is not Tensor or differentiates(x) or differentiates_forward():
            return "derivatives of the input are asked for"
        if every_module_is_hooked() or any(has_hooks(m) or m._forward_pre_hooks for m in self.model.modules()):
            return "a module has hooks"
        return None

    def _through(self, x: Tensor, cls_token: Tensor, valid: Lengths | None, *, compared: bool) -> Tensor:
        """The class token after all blocks: as the model finds it, or by replay where its weights are `compared`."""
        if not compared:
            return self.model._through(x, cls_token, valid)
        key, state = _key(x, valid), _state(self.model)
        with self._turns.turn(x.device):
            captured = self._graphs.get(key)
            if captured is None or captured.state != state:
                result = self.model._through(x, cls_token, valid, compared=True)
                self._keep(key, x, cls_token, valid)
                return result
            self._graphs.move_to_end(key)
            captured.x.copy_(x)
            if captured.valid is not None and valid is not None:
                captured.valid.copy_(valid.valid)
            captured.graph.replay()
            return captured.graph.result.clone()

    def _keep(self, key: Hashable, x: Tensor, cls_token: Tensor, valid: Lengths | None) -> None:
        """Capture a graph for inputs like these, which have just been computed, so that nothing is built on the way."""
        self._graphs.pop(key, None)
        while len(self._graphs) >= self._most:
            self._graphs.popitem(last=False)
        if self._pool is None and x.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(False), torch.no_grad():
            own = x.clone()
            lengths = None if valid is None else Lengths(valid.axis, valid.valid.clone())
            graph = Graph(lambda: self.model._through(own, cls_token, lengths, compared=True), x.device, self._pool)
        held = [[x.detach() for x in tensors_below(self.model)], [block._cache.entry for block in self.model.blocks]]
        number = None if lengths is None else lengths.valid
        self._graphs[key] = _Captured(graph, own, number, _state(self.model), held)


def graphed(model: SepTr, most: int = 8) -> GraphedSepTr:
    """Let calls of `model` without gradients be replayed from CUDA graphs: one launch in place of a hundred.

    The result is called like the model and gives the same bits. For a shape, dtype and axis of lengths seen first it
    calls the model, and the second time captures a graph; from then on it copies the input, starts the graph and
    copies the result. The model may be trained, loaded or changed in between: weights are compared at every call,
    and where anything else has changed a new graph is captured. On a CPU, with gradients, in training mode with
    dropout, with hooks and for layers of your own it calls the model.

    A graph holds the memory of a pass, which all graphs of one `graphed` share, and its input. Calls from several
    threads and streams wait for one another.

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


def _key(x: Tensor, valid: Lengths | None) -> Hashable:
    """What one graph serves: inputs, and settings of PyTorch that a call depends on."""
    autocast = torch.get_autocast_dtype(x.device.type) if autocasts(x.device.type) else None
    precise = torch.backends.cuda.matmul
    reduced = (precise.allow_bf16_reduced_precision_reduction, precise.allow_fp16_reduced_precision_reduction)
    settings = (autocast, input_precision(), reduced, torch.are_deterministic_algorithms_enabled())
    return (x.shape, x.dtype, x.device, None if valid is None else valid.axis, settings)


def _state(model: SepTr) -> object:
    """What a graph was captured of, but for the values of parameters."""
    own = [(type(m), [v for v in vars(m).values() if type(v) in PLAIN]) for m in model.modules()]
    places = [(x.data_ptr(), x.shape, x.stride(), x.dtype) for x in tensors_below(model)]
    return own, places, [id(block._cache.entry) for block in model.blocks]
