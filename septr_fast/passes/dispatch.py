"""One transformer pass along one axis of the token grid: checks, then the backend.

Every function takes a grid `(batch, height, width, dim)` whose tokens are contiguous runs of `dim`
values, the class token apart as `(batch, dim)`, and folded weights from `septr_fast.algebra`. With
`axis="height"` each column is a sequence, with `axis="width"` each row is; the class token joins every
sequence in front. The class token that comes back is the mean over all sequences of its sample.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from septr_fast import kernels
from septr_fast.algebra.folded import NO_DROPOUT, Direct, Dropout, LowRank, Merged, Mlp
from septr_fast.passes.backend import choose
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.torch import operators as torch_operators
from septr_fast.passes.torch import passes as torch_passes
from septr_fast.reference import AXES


def axis_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct | Merged,
    mlp: Mlp,
    *,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    out: Tensor | None = None,
    lengths: Lengths | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add positions and run one pre-norm transformer over every sequence along `axis`.

    Args:
        grid: `(batch, height, width, dim)`.
        cls_token: `(batch, dim)`.
        pos_embedding: `(1 + length, dim)`, the class token's position first.
        attention: folded attention sublayer, direct or merged.
        mlp: folded MLP sublayer.
        axis: "height" or "width", the axis that a sequence runs along.
        dropout: probabilities of dropping an output of the attention and of the layers of the MLP.
        recompute: keep only the input of each sublayer for the backward pass, or of the pass as a whole.
        out: without gradients, the contiguous grid to write the result to; may be `grid`.
        lengths: valid tokens of each sample; None for all. Padding in `grid` has to be finite.
        backend: "auto", "torch" or "triton".

    Returns:
        The grid `(batch, height, width, dim)` and the class token `(batch, dim)`.

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        RuntimeError: where the backend cannot run, with the reason.
    """
    _check_grid(grid, axis, pos_embedding)
    _check_class_token(grid, cls_token, pos_embedding)
    runs = _runs("axis_pass", backend, grid, attention, mlp, dropout)
    options = {"axis": axis, "dropout": dropout, "recompute": recompute, "out": out, "lengths": lengths}
    return runs.axis_pass(grid, cls_token, pos_embedding, attention, mlp, **options)


def low_rank_pass(
    pixels: Tensor,
    attention: LowRank,
    mlp: Mlp,
    *,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    dtype: torch.dtype | None = None,
    lengths: Lengths | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the model's first transformer straight from the pixels, projection and positions included.

    Args:
        pixels: `(batch, height, width, channels)`.
        attention: tables of the first transformer along `axis`, in float32 or float64.
        mlp: folded MLP sublayer.
        axis: "height" or "width", the axis that a sequence runs along.
        dropout: probabilities of dropping an output of the attention and of the layers of the MLP.
        recompute: keep only the input of each sublayer for the backward pass.
        dtype: of the grid that comes out; that of `pixels` by default.
        lengths: valid tokens of each sample; None for all. Padding in `pixels` has to be finite.
        backend: "auto", "torch" or "triton".

    Returns:
        The grid `(batch, height, width, dim)` and the class token `(batch, dim)`.

    Raises:
        ValueError: where a shape does not fit, naming the argument.
        RuntimeError: where the backend cannot run, with the reason.
    """
    _check_grid(pixels, axis, attention.token_bias)
    along_padding = lengths is not None and lengths.axis == axis
    runs = _runs("low_rank_pass", backend, pixels, attention, mlp, dropout, along_padding)
    options = {"axis": axis, "dropout": dropout, "recompute": recompute, "dtype": dtype, "lengths": lengths}
    return runs.low_rank_pass(pixels, attention, mlp, **options)


def class_only_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct,
    mlp: Mlp,
    *,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    lengths: Lengths | None = None,
    backend: str = "auto",
) -> Tensor:
    """Run the model's last transformer for the class token alone.

    Arguments and errors are those of `axis_pass`, with direct weights.

    Returns:
        The class token `(batch, dim)`.
    """
    _check_grid(grid, axis, pos_embedding)
    _check_class_token(grid, cls_token, pos_embedding)
    runs = _runs("class_only_pass", backend, grid, attention, mlp, dropout)
    options = {"axis": axis, "dropout": dropout, "recompute": recompute, "lengths": lengths}
    return runs.class_only_pass(grid, cls_token, pos_embedding, attention, mlp, **options)


def _runs(
    pass_name: str,
    backend: str,
    grid: Tensor,
    attention: Direct | Merged | LowRank,
    mlp: Mlp,
    dropout: Dropout,
    along_padding: bool = False,
) -> ModuleType:
    """The module of the backend that runs a pass, `along_padding` where its own sequences are padded."""
    dim = mlp.out_weight.shape[0]
    head_dim = attention.qkv_weight.shape[0] // (3 * attention.heads) if isinstance(attention, Direct) else dim
    limit = kernels.limit(
        pass_name,
        dtypes=(grid.dtype, mlp.out_weight.dtype),
        dim=dim,
        head_dim=head_dim,
        heads=attention.heads,
        dropout=dropout != NO_DROPOUT,
        along_padding=along_padding,
    )
    if choose(backend, pass_name, grid.device, limit) == "torch":
        return torch_operators if torch_operators.serve(grid.device, dropout) else torch_passes
    from septr_fast.passes.triton import passes as triton_passes

    return triton_passes


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
