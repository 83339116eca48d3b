"""One transformer pass along one axis of the token grid: checks, then the backend.

Every function takes a grid `(batch, height, width, dim)` whose tokens are contiguous runs of `dim` values, the class
token apart as `(batch, dim)`, folded weights from `septr_fast.algebra`, and `Settings`. The class token joins every
sequence in front. The class token that comes back is the mean over all sequences of its sample.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

import septr_fast.kernels as kernels
from septr_fast.algebra.folded import Direct, Folded, LowRank
from septr_fast.passes.backend import choose
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import operators as torch_operators
from septr_fast.passes.torch import passes as torch_passes
from septr_fast.reference import AXES


def axis_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Add positions and run one pre-norm transformer over every sequence.

    Args:
        grid: `(batch, height, width, dim)`.
        cls_token: `(batch, dim)`.
        pos_embedding: `(1 + length, dim)`, the class token's position first.
        weights: the attention direct or merged.
        settings: how it runs.

    Returns:
        The grid `(batch, height, width, dim)` and the class token `(batch, dim)`.

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        RuntimeError: where the backend cannot run, with the reason.
    """
    _check_grid(grid, settings.axis, pos_embedding)
    _check_class_token(grid, cls_token, pos_embedding)
    runs = _runs("axis_pass", grid, weights, settings)
    return runs.axis_pass(grid, cls_token, pos_embedding, weights, settings)


def low_rank_pass(pixels: Tensor, weights: Folded, settings: Settings) -> tuple[Tensor, Tensor]:
    """Run the model's first transformer straight from the pixels, projection and positions included.

    Args:
        pixels: `(batch, height, width, channels)`.
        weights: the attention low-rank, its tables in float32 or float64.
        settings: how it runs.

    Returns:
        The grid `(batch, height, width, dim)` and the class token `(batch, dim)`.

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        RuntimeError: where the backend cannot run, with the reason.
    """
    _check_grid(pixels, settings.axis, cast(LowRank, weights.attention).token_bias)
    return _runs("low_rank_pass", pixels, weights, settings).low_rank_pass(pixels, weights, settings)


def class_only_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> Tensor:
    """Run the model's last transformer for the class token alone.

    Arguments and errors are those of `axis_pass`, with direct weights.

    Returns:
        The class token `(batch, dim)`.
    """
    _check_grid(grid, settings.axis, pos_embedding)
    _check_class_token(grid, cls_token, pos_embedding)
    runs = _runs("class_only_pass", grid, weights, settings)
    return runs.class_only_pass(grid, cls_token, pos_embedding, weights, settings)


def _runs(pass_name: str, grid: Tensor, weights: Folded, settings: Settings) -> ModuleType:
    """The module of the backend that runs a pass."""
    attention, mlp = weights
    dim = mlp.out_weight.shape[0]
    head_dim = attention.qkv_weight.shape[0] // (3 * attention.heads) if isinstance(attention, Direct) else dim
    lengths = settings.lengths
    limit = kernels.limit(
        pass_name,
        dtypes=(grid.dtype, mlp.out_weight.dtype),
        dim=dim,
        head_dim=head_dim,
        heads=attention.heads,
        dropout=settings.drops,
        along_padding=pass_name == "low_rank_pass" and lengths is not None and lengths.axis == settings.axis,
    )
    products = mlp.out_weight.dtype
    trial = partial(_tried, grid.device, products)
    if choose(settings.backend, pass_name, grid.device, limit, trial, products=products) == "torch":
        return torch_operators if torch_operators.serve(grid.device, settings) else torch_passes
    from septr_fast.passes.triton import passes as triton_passes

    return triton_passes


def _tried(device: torch.device, dtype: torch.dtype) -> str | None:
    """What the kernels did wrong on `device`, if anything."""
    from septr_fast.passes.triton import trial

    return trial.why_not(device, dtype)


def _check_grid(grid: Tensor, axis: str, per_token: Tensor) -> None:
    """Check a grid against what is kept for each of the `1 + length` tokens of a sequence."""
    if axis not in AXES:
        raise ValueError(f"axis: expected one of {', '.join(AXES)}, got {axis!r}")
    if grid.dim() != 4:
        raise ValueError(f"grid: expected (batch, height, width, dim), got {tuple(grid.shape)}")
    length = grid.shape[1] if axis == "height" else grid.shape[2]
    if per_token.dim() != 2 or per_token.shape[0] != length + 1:
        raise ValueError(
            f"pos_embedding: expected {length + 1} positions for sequences of {length} tokens and a class token "
            f"along the {axis}, got {tuple(per_token.shape)}"
        )


def _check_class_token(grid: Tensor, cls_token: Tensor, pos_embedding: Tensor) -> None:
    expected = (grid.shape[0], grid.shape[3])
    if tuple(cls_token.shape) != expected:
        raise ValueError(f"cls_token: expected {expected}, got {tuple(cls_token.shape)}")
    if pos_embedding.shape[1] != grid.shape[3]:
        raise ValueError(f"pos_embedding: expected width {grid.shape[3]}, got {pos_embedding.shape[1]}")
