"""Whether somebody looks on who must see every step: then nothing is kept, written in place or chosen by value."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from septr_fast.algebra import older_torch


def transforms() -> bool:
    """Whether a transform of `torch.func` is active."""
    return torch._C._are_functorch_transforms_active()


def differentiates_forward() -> bool:
    """Whether derivatives are taken in forward mode, which PyTorch's checkpoints know nothing of before 2.10."""
    return forward_ad._current_level >= 0


def are_batched(*tensors: Tensor) -> bool:
    """Whether one of `tensors` stands for several, as gradients do under `torch.autograd.grad(is_grads_batched=True)`.

    That is a transform of its own, which `transforms` knows nothing of, and which knows few operators.
    """
    return any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


def makes_graph() -> bool:
    """Whether a compiler, an exporter or a tracer makes a graph, which may serve other batches too."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def exports() -> bool:
    """Whether an exporter makes a graph.

    Compiled by PyTorch 2.11, `torch.compiler.is_exporting()` is always true; what it returns elsewhere is this.
    """
    return older_torch.exports()


def records() -> bool:
    """Whether a graph is made or a transform of `torch.func` follows what is computed."""
    return makes_graph() or transforms()
