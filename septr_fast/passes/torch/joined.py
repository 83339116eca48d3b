"""The grid and the class tokens that the chunks of a pass are joined to, whoever computes them.

What is not a chunk's own, the weights and positions, is the `operands` of a pass: tensors and folded weights, which
its `transform` gets in front of each chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from septr_fast.passes.lengths import mean_over_rows
from septr_fast.passes.observers import records
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import cores, shared_training
from septr_fast.passes.torch.chunk_gradients import Operands, reader
from septr_fast.passes.torch.chunks import Chunks, rows_of

Transform = Callable[..., Tensor]
"""Operands, then a chunk: tokens `(samples, rows, 1 + length, dim)` out, or class tokens alone."""


def assembled(
    transform: Transform,
    operands: Operands,
    chunks: Chunks,
    grid_shape: torch.Size,
    settings: Settings,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Join what `transform` makes of `chunks`.

    Without gradients the cores share the chunks, and each is written into one contiguous grid when it is done (`out`
    where given).

    Returns:
        The grid `(batch, height, width, dim)` and the class tokens' mean over the valid rows, `(batch, dim)`.
    """
    if torch.is_grad_enabled() or records():
        shares = shared_training.serves(chunks, operands, settings)
        class_tokens, rows = (
            shared_training.run(transform, operands, chunks, _in_turn)
            if shares
            else _in_turn(transform, operands, chunks)
        )
        grid = rows_of(rows, settings.axis)
    else:
        target = _Target(grid_shape, settings.axis, out)

        def write(place: tuple[int, int], *chunk: Tensor) -> Tensor:
            return target.write(transform(operands, *chunk), place)

        parts = _run(write, _placed(chunks, chunks.rows.shape[1]), chunks.shared and not settings.drops)
        class_tokens = _per_row(parts, chunks.rows)
        assert target.grid is not None
        grid = target.grid
    return grid, mean_over_rows(class_tokens, settings.lengths, settings.axis)


def class_token_of(transform: Transform, operands: Operands, chunks: Chunks, settings: Settings) -> Tensor:
    """The mean over the valid rows of the class tokens that `transform` makes of `chunks`, `(batch, dim)`.

    With gradients the cores do not share them: it is a hundredth of a step's work, and to share a pass keeps its grid.
    """
    if torch.is_grad_enabled() or records():
        parts = _each(transform, operands, chunks)
    else:
        parts = _run(lambda *chunk: transform(operands, *chunk), chunks, chunks.shared and not settings.drops)
    return mean_over_rows(_per_row(parts, chunks.rows), settings.lengths, settings.axis)


def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The class tokens and the grid tokens of `(samples, rows, 1 + length, dim)`."""
    front, body = tokens.split([1, tokens.shape[2] - 1], dim=2)
    return front, body


def _in_turn(transform: Transform, operands: Operands, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Class tokens `(batch, rows, dim)` and grid tokens `(batch, rows, length, dim)`, one chunk after the other."""
    parts = [split(tokens) for tokens in _each(transform, operands, chunks)]
    bodies = [body.flatten(0, 1) for _, body in parts]
    joined = bodies[0] if len(bodies) == 1 else torch.cat(bodies)
    return _per_row([front for front, _ in parts], chunks.rows), joined.unflatten(0, chunks.rows.shape[:2])


def _each(transform: Transform, operands: Operands, chunks: Chunks) -> list[Tensor]:
    """What `transform` makes of each chunk, one after the other, with operands whose gradients are summed up well."""
    readers = [reader(operand) for operand in operands]
    return [transform(tuple(read() for read in readers), *chunk) for chunk in chunks]


def _run(function: Callable[..., Tensor], chunks: Iterable[tuple[Any, ...]], shared: bool) -> list[Tensor]:
    """`function` of each chunk, by all cores where they are `shared`."""
    if not shared:
        return [function(*chunk) for chunk in chunks]
    return cores.each(lambda chunk: function(*chunk), list(chunks))


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


def _per_row(parts: list[Tensor], rows: Tensor) -> Tensor:
    """Join class tokens `(samples, rows, …, dim)` of all chunks of `rows`: `(batch, rows, dim)`."""
    return torch.cat([part.flatten(0, -2) for part in parts]).unflatten(0, rows.shape[:2])
