"""Smaller chunks of rows in plain PyTorch, and how many passes took several of one sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, is_grad_enabled

from septr_fast.passes.torch import chunks as passes_in_chunks
from septr_fast.passes.torch import merged_training
from septr_fast.passes.torch import passes as torch_passes

SIZES = ("CPU_CHUNK_BYTES", "CPU_TRAINING_CHUNK_BYTES")
EVALUATION, TRAINING, BY_HAND = (
    "without gradients",
    "with gradients",
    "with the backward pass of `merged_training`",
)


@contextmanager
def chunks(size: int | None) -> Iterator[None]:
    """Let chunks on a CPU take `size` bytes, with and without gradients; None for the shipped sizes.

    With a size a sample without gradients is always a chunk, or several, by itself, as large ones are.
    """
    if size is None:
        yield
        return
    with mock.patch.multiple(passes_in_chunks, **dict.fromkeys(SIZES, size), LEAST_ALONE_BYTES=1):
        yield


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the passes inside that took several chunks of a sample, by their kind."""
    found: Counter[str] = Counter()
    chunk_size, merged = passes_in_chunks.chunk_size, merged_training.run

    def noting(rows: Tensor, bytes_per_row: int) -> tuple[int, int]:
        samples, count = chunk_size(rows, bytes_per_row)
        found[TRAINING if is_grad_enabled() else EVALUATION] += count < rows.shape[1]
        return samples, count

    def noting_merged(
        rows: Tensor,
        cls_token: Tensor,
        pos_embedding: Tensor,
        weights: merged_training.Weights,
        settings: merged_training.Settings,
        plain: Callable[..., Any],
    ) -> tuple[Tensor, Tensor]:
        found[BY_HAND] += settings.chunk[1] < rows.shape[1]
        return merged(rows, cls_token, pos_embedding, weights, settings, plain)

    with (
        mock.patch.object(passes_in_chunks, "chunk_size", noting),
        mock.patch.object(torch_passes, "chunk_size", noting),
        mock.patch.object(merged_training, "run", noting_merged),
    ):
        yield found


def never(found: Counter[str]) -> list[str]:
    """The kinds of which no pass took several chunks of a sample, in words."""
    return [f"no pass {kind} took several chunks of a sample" for kind in KINDS if not found[kind]]


KINDS = (EVALUATION, TRAINING, BY_HAND)
