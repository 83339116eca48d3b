"""Chunks of rows whose intermediate results fit a CPU's cache, and the grid that they are joined to.

A pass cuts the grid into chunks of rows (for the height axis: of columns) and writes each back when it is done: nothing
of the size of the whole grid is made besides the grid itself. On other devices a chunk is as large as memory allows;
under `torch.compile` it is everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from septr_fast.passes.lengths import mean_over_rows
from septr_fast.passes.observers import makes_graph, records
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import freed_memory
from septr_fast.passes.torch.chunk_gradients import reader

CPU_CHUNK_BYTES = 6 << 20
CPU_TRAINING_CHUNK_BYTES = 12 << 20
DEVICE_CHUNK_BYTES = 4 << 30


def rows_of(grid: Tensor, axis: str) -> Tensor:
    """View `(batch, height, width, ·)` as `(batch, rows, length, ·)`, the length along `axis`."""
    return grid.transpose(1, 2) if axis == "height" else grid


def chunked(rows: Tensor, bytes_per_row: int, *per_sample: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut `rows` `(batch, rows, …)` into chunks within the device's chunk size, in order.

    With each chunk comes the part of every tensor of `per_sample` `(batch, …)` that belongs to it. Without
    gradients a chunk on a CPU never holds two samples, so that no sample's arithmetic depends on the batch.
    """
    if makes_graph() or rows.shape[0] == 0:
        yield rows, *per_sample
        return
    samples, count = chunk_size(rows, bytes_per_row)
    for part, *others in zip(*(tensor.split(samples) for tensor in (rows, *per_sample)), strict=True):
        readers = [reader(other) for other in others]
        for chunk in part.split(count, dim=1):
            yield chunk, *(read() for read in readers)


def chunk_size(rows: Tensor, bytes_per_row: int) -> tuple[int, int]:
    """How many samples and how many of their rows make a chunk."""
    count = rows.shape[1]
    on_cpu, trains = rows.device.type == "cpu", torch.is_grad_enabled()
    if not on_cpu:
        budget = DEVICE_CHUNK_BYTES
    elif trains:
        freed_memory.keep_for_training()
        budget = CPU_TRAINING_CHUNK_BYTES
    else:
        freed_memory.keep()
        budget = CPU_CHUNK_BYTES
    step = max(1, min(budget // bytes_per_row, 32768))
    alone = on_cpu and not trains
    return 1 if alone else max(1, step // count), _ceil_div(count, _ceil_div(count, step))


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def assembled(
    chunks: Iterable[Tensor], grid_shape: torch.Size, settings: Settings, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Join `chunks`, tokens `(samples, rows, 1 + length, dim)`, in the order of samples and rows.

    Without gradients they are written into one contiguous grid as they come (`out` where given); with them
    they are joined at the end.

    Returns:
        The grid `(batch, height, width, dim)` and the class tokens' mean over the valid rows, `(batch, dim)`.
    """
    axis, (batch, height, width) = settings.axis, grid_shape
    count, length = (width, height) if axis == "height" else (height, width)
    written = 0
    bodies: list[Tensor] = []
    class_tokens: list[Tensor] = []
    for tokens in chunks:
        front, body = tokens.split([1, length], dim=2)
        if torch.is_grad_enabled() or records():
            class_tokens.append(front)
            bodies.append(body.flatten(0, 1))
            continue
        class_tokens.append(front.clone())
        if out is None or out.dtype != tokens.dtype:
            out = tokens.new_empty(*grid_shape, tokens.shape[-1])
        sample, row = divmod(written, count)
        rows_of(out, axis)[sample : sample + len(body), row : row + body.shape[1]] = body
        written += len(body) * body.shape[1]
    if bodies:
        joined = bodies[0] if len(bodies) == 1 else torch.cat(bodies)
        out = rows_of(joined.unflatten(0, (batch, count)), axis)
    assert out is not None
    return out, mean_over_rows(per_row(class_tokens, batch, count), settings.lengths, axis)


def per_row(parts: list[Tensor], batch: int, rows: int) -> Tensor:
    """Join class tokens `(samples, rows, …)` of all chunks: `(batch, rows, dim)`."""
    return torch.cat([part.flatten(0, -2) for part in parts]).unflatten(0, (batch, rows))
