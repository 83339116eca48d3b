"""Chunks of rows whose intermediate results fit a CPU's cache.

A pass cuts the grid into chunks of rows (for the height axis: of columns). The cores take them in turn (see `cores`).
On other devices chunks are large enough to keep them busy; under `torch.compile` it is everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from septr_fast.passes.observers import makes_graph
from septr_fast.passes.torch import cores, freed_memory
from septr_fast.passes.torch.chunk_gradients import reader

CPU_CHUNK_BYTES = 6 << 20
CPU_TRAINING_CHUNK_BYTES = 12 << 20
LEAST_CHUNK_BYTES = 1 << 20
"""Of a chunk on a CPU: for one core or two it is as above, for more of them in proportion less, and not below this."""
DEVICE_CHUNK_BYTES = 1 << 29
LEAST_SHARED_BYTES = 1 << 23
"""Of a sample's intermediate results that cores share chunk by chunk; of less they share every operation, since
operations so short wait for the one thread at a time that Python lets start them."""
LEAST_ALONE_BYTES = 1 << 22
"""Of a sample's intermediate results without gradients that are no chunk with those of others."""

Place = tuple[slice, slice]
"""The samples and rows of a chunk."""


def rows_of(grid: Tensor, axis: str) -> Tensor:
    """View `(batch, height, width, ·)` as `(batch, rows, length, ·)`, the length along `axis`."""
    return grid.transpose(1, 2) if axis == "height" else grid


@dataclass(frozen=True)
class Chunks:
    """Rows of a pass and how they are cut; iterated, the chunks in order, and with each what belongs to its samples.

    Attributes:
        rows: `(batch, rows, …)`.
        per_sample: tensors `(batch, …)`.
        size: samples and rows of a chunk; None where everything is one.
        shared: whether they are so much work that the cores share it.
    """

    rows: Tensor
    per_sample: tuple[Tensor, ...]
    size: tuple[int, int] | None
    shared: bool

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.size is None:
            yield self.rows, *self.per_sample
            return
        samples, count = self.size
        for part, *others in zip(*(tensor.split(samples) for tensor in (self.rows, *self.per_sample)), strict=True):
            readers = [reader(other) for other in others]
            for chunk in part.split(count, dim=1):
                yield chunk, *(read() for read in readers)


def chunked(rows: Tensor, bytes_per_row: int, *per_sample: Tensor) -> Chunks:
    """Cut `rows` `(batch, rows, …)` into chunks within the device's chunk size.

    With each chunk comes the part of every tensor of `per_sample` `(batch, …)` that belongs to it. Without
    gradients a chunk on a CPU never holds two samples of `LEAST_ALONE_BYTES` or more, so that the arithmetic of one
    does not depend on the batch; smaller ones would cost more to start than to compute.
    """
    if makes_graph() or rows.shape[0] == 0:
        return Chunks(rows, per_sample, None, shared=False)
    shared = rows.device.type == "cpu" and _is_shared(rows.shape[1], bytes_per_row)
    return Chunks(rows, per_sample, chunk_size(rows, bytes_per_row), shared)


def places(rows: Tensor, size: tuple[int, int]) -> list[Place]:
    """The samples and rows of every chunk of `rows` `(batch, rows, …)`, in order."""
    samples, count = size
    return [
        (slice(sample, sample + samples), slice(row, row + count))
        for sample in range(0, rows.shape[0], samples)
        for row in range(0, rows.shape[1], count)
    ]


def _is_shared(count: int, bytes_per_row: int) -> bool:
    """Whether the cores share a sample of `count` rows, whatever the number of samples: bits may depend on it."""
    return count >= cores.count() > 1 and count * bytes_per_row >= LEAST_SHARED_BYTES


def chunk_size(rows: Tensor, bytes_per_row: int) -> tuple[int, int]:
    """How many samples and how many of their rows make a chunk; on a CPU there is one for each thread, or more."""
    batch, count = rows.shape[:2]
    if rows.device.type != "cpu":
        step = max(1, min(DEVICE_CHUNK_BYTES // bytes_per_row, 32768))
        return max(1, step // count), _ceil_div(count, _ceil_div(count, step))
    threads, trains = cores.count(), torch.is_grad_enabled()
    if trains:
        freed_memory.keep_for_training()
    else:
        freed_memory.keep()
    most = CPU_TRAINING_CHUNK_BYTES if trains else CPU_CHUNK_BYTES
    budget = most if threads <= 2 else max(2 * most // threads, min(most, LEAST_CHUNK_BYTES))
    step = max(1, min(budget // bytes_per_row, 32768))
    alone = not trains and count * bytes_per_row >= LEAST_ALONE_BYTES
    samples, parts = 1 if alone else max(1, step // count), _ceil_div(count, step)
    if batch * count * bytes_per_row >= LEAST_SHARED_BYTES:
        samples = min(samples, _ceil_div(batch, threads))
    if samples == 1 and _is_shared(count, bytes_per_row):
        parts = min(count, _ceil_div(parts, threads) * threads)
    return samples, _ceil_div(count, parts)


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)
