"""Padded batches: how many columns or rows of each spectrogram are real.

A sample with `length` valid tokens along one axis is computed as if it had been cut there, its positions cut
alike: what stands in the padding is replaced by zeros before anything is computed from it, padded tokens are
keys to nobody, and padded sequences count for no mean. They are computed all the same, to nobody's benefit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from septr_fast.passes.inputs import check_dense
from septr_fast.reference import AXES


@dataclass(frozen=True)
class Lengths:
    """Valid tokens of each sample.

    Attributes:
        axis: "height" or "width", the axis that is padded.
        valid: `(batch,)`, int64, on the device of the grid; from 1 to the size of the axis.
    """

    axis: str
    valid: Tensor


def read(
    lengths: Sequence[int] | Tensor, axis: str, *, batch: int, size: int, pool: int, device: torch.device
) -> Lengths | None:
    """Check lengths in pixels and turn them into tokens.

    Lengths that are a list or on the CPU cost no synchronization with a GPU. Values cannot be checked while a
    graph is compiled or captured: there the nearest that is possible is taken, so that no kernel reads beyond a tensor.

    Args:
        lengths: `(batch,)` integers.
        axis: "height" or "width".
        batch: number of samples.
        size: of a spectrogram along `axis`, in pixels.
        pool: pixels of a token along `axis`; an incomplete token at the end is padding.
        device: of the grid.

    Returns:
        The lengths in tokens; None where every sample fills the axis.

    Raises:
        ValueError: for a wrong axis, shape or value; for lengths that are not on the GPU whose graph is captured.
        TypeError: for lengths that are not integers.
    """
    check_axis(axis)
    given = _as_tensor(lengths)
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if given.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64) or given.is_floating_point():
        raise TypeError(f"lengths: expected integers, got {given.dtype}")
    if given.is_complex():
        raise TypeError(f"lengths: expected integers, got {given.dtype}")
    if given.is_meta and device.type != "meta":
        raise TypeError(f"lengths: expected values for a tensor on {device}, got a tensor on meta, without any")
    if tuple(given.shape) != (batch,):
        raise ValueError(f"lengths: expected one for each of {batch} samples, got shape {tuple(given.shape)}")
    if captured and given.device != device:
        raise ValueError(
            f"lengths: expected a tensor on {device} while a CUDA graph is captured, which reads it at every replay; "
            f"got one on {given.device}"
        )
    tokens = torch.div(given.to(torch.int64), pool, rounding_mode="floor")
    if torch.compiler.is_compiling() or given.is_meta or captured:
        tokens = tokens.clamp(1, size // pool)
    else:
        values = given.tolist()
        for sample, value in enumerate(values):
            if not pool <= value <= size:
                raise ValueError(
                    f"lengths: expected {pool} to {size} along the {axis}, got {value} for sample {sample}"
                )
        if all(value // pool == size // pool for value in values):
            return None
    return Lengths(axis, _sent(tokens, device))


def _sent(tokens: Tensor, device: torch.device) -> Tensor:
    """`tokens` on `device`, to a GPU out of pinned memory: nobody waits for that copy."""
    if device.type == "cuda" and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        tokens = tokens.pin_memory()
    return tokens.to(device, non_blocking=True)


def check_axis(axis: str) -> None:
    """Raise `ValueError` unless `axis` is one of `AXES`."""
    if axis not in AXES:
        raise ValueError(f"lengths_axis: expected one of {', '.join(AXES)}, got {axis!r}")


def _as_tensor(lengths: Sequence[int] | Tensor) -> Tensor:
    """`lengths` as a tensor; raise `TypeError` for what is no list of numbers and no dense tensor."""
    if isinstance(lengths, Tensor):
        check_dense(lengths, "lengths")
        return lengths
    try:
        tensor = torch.as_tensor(lengths, device="cpu")  # whatever the default device is
        return tensor if tensor.numel() else tensor.to(torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lengths: expected integers, one for each sample, got {lengths!r}: {error}") from error


def one_by_one(x: Tensor, lengths: Sequence[int] | Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Every sample of `x` `(batch, …)` as a batch of one, with its length `(1,)` where there are any."""
    each: Iterable[Tensor | None] = repeat(None) if lengths is None else _as_tensor(lengths).split(1)
    return zip(x.split(1), each, strict=False)


def clear(grid: Tensor, lengths: Lengths) -> Tensor:
    """Zeros in place of the padding of `grid` `(batch, height, width, …)`, NaN included."""
    dimension = 1 + AXES.index(lengths.axis)
    shape = [1] * grid.dim()
    shape[0], shape[dimension] = grid.shape[0], grid.shape[dimension]
    return torch.where(within(lengths.valid, grid.shape[dimension]).view(shape), grid, 0)


def within(valid: Tensor, size: int) -> Tensor:
    """Whether each of `size` places is valid: `(batch, size)` from `(batch,)`."""
    return torch.arange(size, device=valid.device) < valid.unsqueeze(1)


def keys(lengths: Lengths | None, axis: str) -> Tensor | None:
    """Valid tokens of every sample's sequences along `axis`, `(batch,)`; None where all are."""
    return lengths.valid if lengths is not None and lengths.axis == axis else None


def mean_over_rows(cls_tokens: Tensor, lengths: Lengths | None, axis: str) -> Tensor:
    """The mean class token `(batch, dim)` of `(batch, rows, dim)`, over the valid rows of a pass along `axis`."""
    dtype = torch.float32 if cls_tokens.dtype.itemsize < 4 else cls_tokens.dtype
    rows = cls_tokens.shape[1]
    if lengths is None or lengths.axis == axis:
        count = torch.full((), rows, dtype=dtype, device=cls_tokens.device)
    else:
        count = lengths.valid.unsqueeze(1).to(dtype)
        cls_tokens = torch.where(within(lengths.valid, rows).unsqueeze(2), cls_tokens, 0)
    return (cls_tokens.sum(dim=1, dtype=dtype) / count).to(cls_tokens.dtype)
