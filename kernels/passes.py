"""What the passes share: chunks of rows, the MLP behind the attention, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import launch
from .mlp import mlp
from .mlp_backward import mlp_backward

Chunk = tuple[slice, slice]
"""Samples and rows."""


@dataclass(frozen=True)
class Layers:
    """The folded MLP in the dtype of the products.

    Attributes:
        hidden_weight: `(hidden, dim)`.
        hidden_bias: `(hidden,)`.
        mlp_weight: `(dim, hidden)`.
        mlp_bias: `(dim,)`.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    mlp_weight: Tensor
    mlp_bias: Tensor


def chunks(rows: Tensor, features: int, dtype: torch.dtype) -> Iterator[Chunk]:
    """Whole samples, or rows of one sample, whose projections fit the chunk size of the device's table.

    For large batches chunks grow instead of getting more: starting kernels takes the processor as long for few rows.

    Args:
        rows: `(batch, rows, length, ·)`.
        features: of a projected token.
        dtype: of the projections.
    """
    batch, count, length = rows.shape[:3]
    tiles, each = launch.choose("chunk", rows.device, dtype, 1).tiles, length * features * dtype.itemsize
    step = max(1, (tiles["MIB"] << 20) // each, launch.ceil_div(batch * count, tiles.get("MOST", 1 << 31)))
    samples = max(1, step // count)
    even = launch.ceil_div(count, launch.ceil_div(count, step))
    for first in range(0, batch, samples):
        for row in range(0, count, even):
            yield slice(first, min(first + samples, batch)), slice(row, min(row + even, count))


def sequences(chunk: Chunk, count: int) -> slice:
    """The numbers of the sequences in a chunk, of `count` in a sample."""
    samples, rows = chunk
    return slice(samples.start * count + rows.start, (samples.stop - 1) * count + rows.stop)


def parts(tokens: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """View grid tokens and class tokens behind one another as `(samples, rows, length, ·)` and `(samples, rows, ·)`."""
    samples, rows, length = shape[:3]
    body, front = tokens.split([samples * rows * length, samples * rows])
    return body.unflatten(0, (samples, rows, length)), front.unflatten(0, (samples, rows))


def add_mlp(
    x: Tensor, pos: Tensor | None, branch: Tensor, layers: Layers, eps: float, middle: Tensor | None, out: Tensor
) -> None:
    """Write `middle = x + pos + branch`, where it is kept, and `out = middle + MLP(middle)`; see `mlp.mlp`."""
    mlp(
        x,
        pos,
        branch,
        layers.hidden_weight,
        layers.hidden_bias,
        layers.mlp_weight,
        layers.mlp_bias,
        eps,
        middle,
        out,
    )


def add_mlp_backward(
    middle: Tensor, grad_out: Tensor, layers: Layers, eps: float, grad_middle: Tensor
) -> dict[str, Tensor]:
    """Write the gradient of `middle`; those of the layers by name."""
    found = mlp_backward(
        middle, grad_out, layers.hidden_weight, layers.hidden_bias, layers.mlp_weight, eps, grad_middle
    )
    return dict(zip(("hidden_weight", "hidden_bias", "mlp_weight", "mlp_bias"), found, strict=True))


def add_up(sums: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Add what was `found` to `sums`, by name, in one operation."""
    torch._foreach_add_([sums[name] for name in found], list(found.values()))


def branch_gradient(
    middle: Tensor,
    grad_out: Tensor,
    grad_cls_middle: Tensor,
    layers: Layers,
    eps: float,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Go back through the MLP of a chunk.

    Args:
        middle: `(samples, rows, length, dim)`, what the forward pass kept.
        grad_out: like `middle`.
        grad_cls_middle: `(samples, rows, dim)`, the class tokens' gradient before the MLP.
        layers: the MLP.
        eps: of its normalization.

    Returns:
        The gradient of `middle` in its dtype; that of the attention's branch in the dtype of the products, grid
        tokens, then class tokens, `(samples * rows * (length + 1), dim)`; and what `add_mlp_backward` gives.
    """
    samples, rows, length, dim = middle.shape
    grad_branch = layers.mlp_weight.new_empty(samples * rows * (length + 1), dim)
    body, front = parts(grad_branch, middle.shape)
    front.copy_(grad_cls_middle)
    grad_middle = body if middle.dtype == body.dtype else middle.new_empty(middle.shape)
    found = add_mlp_backward(middle, grad_out, layers, eps, grad_middle)
    if grad_middle is not body:
        body.copy_(grad_middle)
    return grad_middle, grad_branch, found
