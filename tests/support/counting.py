"""What passes of a model count up to, without data and without a GPU.

On "cpu" fake tensors take a CPU's way, its chunks and its convolutions included; a forward pass finds the weights
folded by an earlier call. On "meta" a chunk is as large as memory allows, and every call folds the weights. The
Triton backend's launches are recorded for an architecture, whose kernels stand beside the operations that PyTorch
does itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from septr_fast.kernels.launch import Launch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring.counting import Operations, held_bytes, hold, saved_bytes
from benchmarks.suite.shapes import Config
from septr_fast import SepTr

BATCH = 2
"""Spectrograms; one in a CPU's chunks, which take as many operations for each."""
LARGEST_ON_CPU = 1 << 16
"""Most tokens of a sample that are counted in a CPU's chunks."""

Counts = dict[str, int | str]
"""Counts by what they count, or under "not counted" the reason why there are none."""


class NotCountedError(Exception):
    """Why a model is not counted on a backend."""


def count(config: Config, backend: str) -> Counts:
    """The counts of `SepTr(**config)` on one of `BACKENDS`."""
    try:
        return BACKENDS[backend](config)
    except NotCountedError as reason:
        return {"not counted": str(reason)}


def torch_on_cpu(config: Config) -> Counts:
    """PyTorch in a CPU's chunks, in float32."""
    with FakeTensorMode(), _SameParameters():
        return torch_in_chunks(config)


def torch_in_chunks(config: Config) -> Counts:
    """PyTorch on a CPU, in float32."""
    model, x = _model(config, "torch")
    x = x[:1]
    if _tokens(model) > LARGEST_ON_CPU:
        raise NotCountedError(f"more than {LARGEST_ON_CPU} tokens of a sample have too many chunks on a CPU")
    counts = _step(model, x)
    with torch.no_grad():
        model(x[:0])
    return counts | _forward(model, x)


def torch_on_meta(config: Config) -> Counts:
    """PyTorch in chunks as large as memory allows, in float32."""
    with torch.device("meta"):
        model, x = _model(config, "torch")
    counts = _step(model, x) | _forward(model, x)
    model.set_grad_checkpointing()
    return {**counts, "recomputing step, bytes held": held_bytes(model, x)}


def triton(config: Config, arch: int) -> Counts:
    """Triton kernels on architecture `arch`, in bfloat16."""
    from septr_fast.tuning.kernel_launches import recording

    with torch.device("meta"):
        model, x = (part.bfloat16() for part in _model(config, "triton"))
    with _refusals():
        counts: Counts = {"step, bytes held": held_bytes(model, x), "step, bytes saved": saved_bytes(model, x)}
    with Operations() as operations, recording(arch) as launches:
        model(x).sum().backward()
    counts |= _of_kernels("step", operations, launches)
    with torch.no_grad(), Operations() as operations, recording(arch) as launches:
        model(x)
    return counts | _of_kernels("forward", operations, launches)


BACKENDS: dict[str, Callable[[Config], Counts]] = {
    "torch, float32, cpu": torch_on_cpu,
    "torch, float32, meta": torch_on_meta,
    "triton, bfloat16, sm_80": partial(triton, arch=80),
    "triton, bfloat16, sm_90": partial(triton, arch=90),
}


def _model(config: Config, backend: str) -> tuple[SepTr, Tensor]:
    model = SepTr(**config, backend=backend)
    first = model.blocks[0]
    return model, torch.empty(BATCH, first.channels, *first.input_size)


def _tokens(model: SepTr) -> int:
    """Tokens of a sample's grid."""
    shape = model.plan().steps[0].shape
    return shape.rows * shape.length


def _step(model: SepTr, x: Tensor) -> Counts:
    with Operations() as found:
        logits, held = hold(lambda: model(x))
        logits.sum().backward()
    return {**_of_pytorch("step", found), "step, bytes held": held}


def _forward(model: SepTr, x: Tensor) -> Counts:
    with torch.no_grad(), Operations() as found:
        model(x)
    return _of_pytorch("forward", found)


def _of_pytorch(name: str, found: Operations) -> Counts:
    return {
        f"{name}, FLOPs": found.flops,
        f"{name}, operations": found.operations,
        f"{name}, views": found.views,
        f"{name}, bytes moved": found.bytes_moved,
    }


def _of_kernels(name: str, operations: Operations, launches: Sequence[Launch]) -> Counts:
    from septr_fast.tuning.kernel_report import bytes_moved

    named = Counter(launch.name for launch in launches)
    return {
        **_of_pytorch(name, operations),
        f"{name}, FLOPs": operations.flops + sum(launch.flops for launch in launches),
        f"{name}, executed FLOPs": operations.flops + sum(launch.executed_flops for launch in launches),
        f"{name}, bytes moved by kernels": sum(map(bytes_moved, launches)),
        f"{name}, launches": len(launches),
        **{f"{name}, launches of {kernel}": number for kernel, number in named.items()},
    }


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        _, refused, reason = str(error).partition('backend="triton" cannot run here: ')
        if not refused:
            raise
        raise NotCountedError(reason) from error


class _SameParameters(TorchDispatchMode):
    """Answers for fake tensors that parameters are as they were."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if function is torch.ops.aten.equal.default else function(*args, **(kwargs or {}))
