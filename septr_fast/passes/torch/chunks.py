"""Chunks of rows whose intermediate results fit a CPU's cache, and the grid that they are joined to.

A pass cuts the grid into chunks of rows (for the height axis: of columns) and writes each back when it is done: nothing
of the size of the whole grid is made besides the grid itself. The cores take them in turn (see `cores`). On other
devices a chunk is as large as memory allows; under `torch.compile` it is everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from septr_fast.passes.lengths import mean_over_rows
from septr_fast.passes.observers import makes_graph, records
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import cores, freed_memory
from septr_fast.passes.torch.chunk_gradients import reader

CPU_CHUNK_BYTES = 6 << 20
CPU_TRAINING_CHUNK_BYTES = 12 << 20
LEAST_CHUNK_BYTES = 1 << 20
"""Of a chunk on a CPU: for one core or two it is as above, for more of them in proportion less, and not below this."""
DEVICE_CHUNK_BYTES = 4 << 30
LEAST_SHARED_BYTES = 1 << 20
"""Of a sample's intermediate results that cores share; less is one chunk."""


def rows_of(grid: Tensor, axis: str) -> Tensor:
    """View `(batch, height, width, ·)` as `(batch, rows, length, ·)`, the length along `axis`."""
    return grid.transpose(1, 2) if axis == "height" else grid


@dataclass(frozen=True)
class Chunks:
    """The chunks of a pass, in order.

    Attributes:
        parts: rows of each, and with them what belongs to each.
        shared: whether they are so much work that the cores share it.
    """

    parts: Iterator[tuple[Tensor, ...]]
    shared: bool


def chunked(rows: Tensor, bytes_per_row: int, *per_sample: Tensor) -> Chunks:
    """Cut `rows` `(batch, rows, …)` into chunks within the device's chunk size.

    With each chunk comes the part of every tensor of `per_sample` `(batch, …)` that belongs to it. Without
    gradients a chunk on a CPU never holds two samples, so that no sample's arithmetic depends on the batch.
    """
    if makes_graph() or rows.shape[0] == 0:
        return Chunks(iter([(rows, *per_sample)]), shared=False)
    shared = rows.device.type == "cpu" and _is_shared(rows.shape[1], bytes_per_row)
    return Chunks(_cut(rows, *chunk_size(rows, bytes_per_row), *per_sample), shared)


def _is_shared(count: int, bytes_per_row: int) -> bool:
    """Whether the cores share a sample of `count` rows, whatever the number of samples: bits may depend on it."""
    return count >= cores.count() > 1 and count * bytes_per_row >= LEAST_SHARED_BYTES


def _cut(rows: Tensor, samples: int, count: int, *per_sample: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for part, *others in zip(*(tensor.split(samples) for tensor in (rows, *per_sample)), strict=True):
        readers = [reader(other) for other in others]
        for chunk in part.split(count, dim=1):
            yield chunk, *(read() for read in readers)


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
    samples, parts = max(1, step // count) if trains else 1, _ceil_div(count, step)
    if batch * count * bytes_per_row >= LEAST_SHARED_BYTES:
        samples = min(samples, _ceil_div(batch, threads))
    if samples == 1 and _is_shared(count, bytes_per_row):
        parts = min(count, _ceil_div(parts, threads) * threads)
    return samples, _ceil_div(count, parts)


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def assembled(
    transform: Callable[..., Tensor],
    chunks: Chunks,
    grid_shape: torch.Size,
    settings: Settings,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Join what `transform` makes of `chunks`, tokens `(samples, rows, 1 + length, dim)`, in their order.

    Without gradients the cores share the chunks, and each is written into one contiguous grid when it is done (`out`
    where given); with them they are joined at the end.

    Returns:
        The grid `(batch, height, width, dim)` and the class tokens' mean over the valid rows, `(batch, dim)`.
    """
    axis, (batch, height, width) = settings.axis, grid_shape
    rows = width if axis == "height" else height
    if torch.is_grad_enabled() or records():
        parts = [split(transform(*chunk)) for chunk in chunks.parts]
        class_tokens, bodies = [front for front, _ in parts], [body.flatten(0, 1) for _, body in parts]
        joined = bodies[0] if len(bodies) == 1 else torch.cat(bodies)
        out = rows_of(joined.unflatten(0, (batch, rows)), axis)
    else:
        target = _Target(grid_shape, axis, out)
        placed = Chunks(_placed(chunks.parts, rows), chunks.shared)
        class_tokens = run(lambda place, *chunk: target.write(transform(*chunk), place), placed, settings)
        out = target.grid
    assert out is not None
    return out, mean_over_rows(per_row(class_tokens, batch, rows), settings.lengths, axis)


def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The class tokens and the grid tokens of `(samples, rows, 1 + length, dim)`."""
    front, body = tokens.split([1, tokens.shape[2] - 1], dim=2)
    return front, body


def run(function: Callable[..., Tensor], chunks: Chunks, settings: Settings) -> list[Tensor]:
    """`function` of each chunk, shared by the cores where no graph and no random number depends on who is first."""
    if not chunks.shared or torch.is_grad_enabled() or records() or settings.drops:
        return [function(*chunk) for chunk in chunks.parts]
    return cores.each(lambda chunk: function(*chunk), list(chunks.parts))


def _placed(chunks: Iterable[tuple[Tensor, ...]], rows: int) -> Iterator[tuple[Any, ...]]:
    """In front of each chunk its first sample and row, of `rows` in a sample."""
    done = 0
    for chunk in chunks:
        yield divmod(done, rows), *chunk
        done += len(chunk[0]) * chunk[0].shape[1]


class _Target:
    """The grid that chunks are written to, made for the first that is done."""

    def __init__(self, shape: torch.Size, axis: str, grid: Tensor | None) -> None:
        self.grid, self._shape, self._axis, self._made = grid, shape, axis, threading.Lock()

    def write(self, tokens: Tensor, place: tuple[int, int]) -> Tensor:
        """Write the grid tokens of `(samples, rows, 1 + length, dim)`; the class tokens come back."""
        front, body = split(tokens)
        front = front.clone()
        with self._made:
            if self.grid is None or self.grid.dtype != tokens.dtype:
                self.grid = tokens.new_empty(*self._shape, tokens.shape[-1])
        sample, row = place
        rows_of(self.grid, self._axis)[sample : sample + len(body), row : row + body.shape[1]] = body
        return front


def per_row(parts: list[Tensor], batch: int, rows: int) -> Tensor:
    """Join class tokens `(samples, rows, …)` of all chunks: `(batch, rows, dim)`."""
    return torch.cat([part.flatten(0, -2) for part in parts]).unflatten(0, (batch, rows))
