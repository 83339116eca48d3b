"""Whether somebody looks on who must see every step: then nothing is kept, written in place or chosen by value."""

from __future__ import annotations

import torch


def transforms() -> bool:
    """Whether a transform of `torch.func` is active."""
    return torch._C._are_functorch_transforms_active()


def makes_graph() -> bool:
    """Whether a compiler, an exporter or a tracer makes a graph, which may serve other batches too."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def exports() -> bool:
    """Whether an exporter makes a graph.

    Compiled by PyTorch 2.11, `torch.compiler.is_exporting()` is always true; what it returns elsewhere is this.
    """
    return torch.compiler._is_exporting_flag


def records() -> bool:
    """Whether a graph is made or a transform of `torch.func` follows what is computed."""
    return makes_graph() or transforms()
